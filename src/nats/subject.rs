//! Which subjects may be published or subscribed to. Pure.

use crate::error::{Error, Kind, Result};

/// Longest subject, in bytes. A server drops a client whose control line (verb, subject, reply subject, sizes)
/// exceeds 4,096 bytes, so both subjects together must stay well below that.
pub const MAX_SUBJECT: usize = 2048;
/// Longest reply subject, in bytes; see [`MAX_SUBJECT`].
pub const MAX_REPLY: usize = 1024;

/// Checks a subject that a message is sent to.
pub fn check_publish(subject: &str) -> Result<()> {
    check(subject, "subject", MAX_SUBJECT, Wildcards::Refused)
}

/// Checks a subject that messages are taken from; it may have wildcards.
pub fn check_subscribe(subject: &str) -> Result<()> {
    check(subject, "subject", MAX_SUBJECT, Wildcards::Allowed).map_err(|error| {
        error.hint(
            "\"*\" stands for one token, \">\" at the end for all that follow; there is no white space.",
        )
    })
}

/// Checks the name of a queue group.
pub fn check_queue_group(name: &str) -> Result<()> {
    check(name, "queue group", MAX_REPLY, Wildcards::Refused)
}

/// Checks a reply subject.
pub fn check_reply(subject: &str) -> Result<()> {
    check(subject, "reply subject", MAX_REPLY, Wildcards::Refused)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wildcards {
    Allowed,
    Refused,
}

fn check(subject: &str, what: &str, longest: usize, wildcards: Wildcards) -> Result<()> {
    let invalid = |why: String| Err(Error::new(Kind::InvalidSubject, format!("invalid {what}")).detail(why));
    if subject.is_empty() {
        return invalid(format!("The {what} is empty."));
    }
    if subject.len() > longest {
        return invalid(format!(
            "The {what} has {} bytes, the limit is {longest}.",
            subject.len()
        ));
    }
    // White space and control characters would end or split the protocol line.
    if let Some(c) = subject.chars().find(|c| c.is_whitespace() || c.is_control()) {
        return invalid(format!(
            "The {what} contains the character U+{:04X}.",
            u32::from(c)
        ));
    }
    let mut tokens = subject.split('.').peekable();
    while let Some(token) = tokens.next() {
        match token {
            "" => return invalid(format!("The {what} \"{subject}\" has an empty token.")),
            "*" if wildcards == Wildcards::Allowed => {}
            ">" if wildcards == Wildcards::Allowed && tokens.peek().is_none() => {}
            ">" if wildcards == Wildcards::Allowed => {
                return invalid(format!(
                    "In the {what} \"{subject}\" something follows the wildcard \">\"."
                ));
            }
            "*" | ">" => return invalid(format!("The {what} \"{subject}\" has the wildcard \"{token}\".")),
            _ => {}
        }
    }
    Ok(())
}

/// Whether a subject is one of those that a filter with wildcards stands for.
pub fn matches(filter: &str, subject: &str) -> bool {
    let (mut filter, mut subject) = (filter.split('.'), subject.split('.'));
    loop {
        match (filter.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(wanted), Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_nats_accepts() {
        for good in [
            "a",
            "a.b.c",
            "sub.ject",
            "ünïcode.主题",
            "a-b_c/d.$SYS",
            "foo*.b>r",
            &"x".repeat(MAX_SUBJECT),
        ] {
            assert_eq!(check_publish(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn refuses_what_breaks_the_protocol_or_means_something_else() {
        for bad in [
            "",
            ".",
            ".a",
            "a.",
            "a..b",
            "a b",
            "a\tb",
            "a\r\nPUB b 0\r\n",
            "a\u{85}b",
            "*",
            "a.*",
            "a.>",
            ">",
        ] {
            let refused = check_publish(bad).expect_err(bad);
            assert_eq!(refused.kind, Kind::InvalidSubject, "{bad}");
        }
        assert!(check_publish(&"x".repeat(MAX_SUBJECT + 1)).is_err());
        assert!(check_reply(&"x".repeat(MAX_REPLY + 1)).is_err());
    }

    #[test]
    fn a_filter_stands_for_subjects() {
        for (filter, subject) in [
            ("a.b", "a.b"),
            ("a.*", "a.b"),
            ("a.>", "a.b.c"),
            (">", "a"),
            ("*.b.>", "a.b.c"),
        ] {
            assert!(matches(filter, subject), "{filter} {subject}");
        }
        for (filter, subject) in [
            ("a.b", "a"),
            ("a", "a.b"),
            ("a.*", "a.b.c"),
            ("a.>", "a"),
            ("b.*", "a.b"),
        ] {
            assert!(!matches(filter, subject), "{filter} {subject}");
        }
    }
}
