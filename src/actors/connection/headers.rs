//! Converts headers from the control channel's form to async-nats's. Pure.

use async_nats::HeaderMap;

use crate::nats::headers::Headers;

/// Headers as async-nats takes them; `None` if there are none. A header that async-nats refuses is left out; the
/// backend has checked names and values already.
pub fn header_map(headers: &Headers) -> Option<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (
            name.parse::<async_nats::HeaderName>(),
            value.parse::<async_nats::HeaderValue>(),
        ) {
            map.append(name, value);
        }
    }
    (!map.is_empty()).then_some(map)
}
