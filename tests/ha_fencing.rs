//! Fencing by what Patroni says, without a real Patroni.

mod patroni;
mod scene;
mod support;

use std::time::Duration;

use patroni::*;
use scene::*;
use support::*;

/// Longer than two looks of the watcher.
const LOOKS: Duration = Duration::from_secs(5);

/// A server with a subscription and a responder, and the Patroni that its foreign server names.
struct Fenced {
    scene: Scene,
    session: Session,
    stub: Stub,
}

impl Fenced {
    async fn start(answer: Answer) -> Self {
        let stub = Stub::start(answer).await;
        let nats = NatsServer::start().await;
        let options = format!(", patroni_url '{}'", stub.url());
        let pg = Postgres::builder().conf("litmus_pgnats.patroni_fencing", "on");
        let scene = Scene::with(pg, nats, &options).await;
        let session = scene.pg.connect().await;
        run(&session, NUMBERS).await;
        run(
            &session,
            "CREATE FUNCTION reply(q text) RETURNS text LANGUAGE sql AS 'SELECT q';
             SELECT litmus_pgnats_register_responder('ha.ask', 'reply')",
        )
        .await;
        Self { scene, session, stub }
    }

    /// Waits until subscription and responder are in this state; why they are.
    async fn until(&self, state: &str) -> Option<String> {
        until_state(&self.session, "ha.ask", state).await;
        until_state(&self.session, "ha.load", state).await
    }

    /// That they stay live for some looks at Patroni.
    async fn stays_live(&self, why: &str) {
        let asked = self.stub.asked();
        tokio::time::sleep(LOOKS).await;
        assert!(self.stub.asked() > asked, "nobody has asked Patroni");
        assert_eq!(
            state_of(&self.session, "ha.load").await,
            Ok(("live".into(), None)),
            "{why}"
        );
        assert_eq!(
            state_of(&self.session, "ha.ask").await,
            Ok(("live".into(), None)),
            "{why}"
        );
    }
}

/// Every spelling of a leader, and every other role.
#[tokio::test]
async fn only_the_leader_takes_messages() {
    let fenced = Fenced::start(Answer::role("primary")).await;
    fenced.until("live").await;
    let client = fenced.scene.nats.client().await;
    for role in ["replica", "demoted", "standby_leader", "something_new"] {
        fenced.stub.say(Answer::role(role));
        let problem = fenced.until("fenced").await;
        assert!(problem.as_ref().is_some_and(|why| !why.is_empty()), "{problem:?}");
        let asked = client.request("ha.ask", "q".into()).await;
        let error = asked.expect_err("no responder of a fenced primary");
        assert_eq!(error.kind(), async_nats::RequestErrorKind::NoResponders);
        run(
            &fenced.session,
            "SELECT nats_publish_text('ha.hello', 'core calls work')",
        )
        .await;
        let leader = if role == "replica" { "master" } else { "primary" };
        fenced.stub.say(Answer::role(leader));
        fenced.until("live").await;
        let asked = client.request("ha.ask", "q".into()).await;
        assert_eq!(asked.expect("a reply").payload, "q");
    }
    let log = fenced.scene.pg.log();
    assert_eq!(
        log.matches("paused subscriptions and responders").count(),
        4,
        "{log}"
    );
    assert_eq!(
        log.matches("resumed subscriptions and responders").count(),
        4,
        "{log}"
    );
}

/// A lock that was seen long ago is none; the ttl is 20 seconds here.
#[tokio::test]
async fn an_old_lock_does_not_count() {
    let fenced = Fenced::start(Answer::seen("primary", 5.0)).await;
    fenced.until("live").await;
    fenced.stays_live("5 of 20 seconds").await;
    fenced.stub.say(Answer::seen("primary", 30.0));
    let problem = fenced.until("fenced").await;
    assert!(problem.is_some_and(|why| why.contains("20")));
    fenced.stub.say(Answer::seen("primary", 1.0));
    fenced.until("live").await;
}

/// Who cannot be asked stops nothing. But nor does he lift what he has said before: "until it does again".
#[tokio::test]
async fn silence_changes_nothing() {
    let fenced = Fenced::start(Answer::role("primary")).await;
    fenced.until("live").await;
    for answer in [Answer::Silence, Answer::Nonsense] {
        fenced.stub.say(answer);
        fenced.stays_live("nothing was said").await;
    }
    fenced.stub.say(Answer::role("replica"));
    fenced.until("fenced").await;
    for answer in [Answer::Silence, Answer::Nonsense] {
        let (text, asked) = (format!("{answer:?}"), fenced.stub.asked());
        fenced.stub.say(answer);
        tokio::time::sleep(LOOKS).await;
        assert!(fenced.stub.asked() > asked, "nobody has asked Patroni");
        let (state, _) = state_of(&fenced.session, "ha.load").await.expect("a state");
        assert_eq!(state, "fenced", "after {text}");
    }
}

/// Messages that wait when the fence comes are not taken behind it.
#[tokio::test]
async fn what_waits_is_not_taken_while_fenced() {
    let fenced = Fenced::start(Answer::role("primary")).await;
    fenced.until("live").await;
    run(
        &fenced.session,
        "CREATE FUNCTION slow(n text) RETURNS void LANGUAGE sql AS $$
           SELECT pg_sleep(1); INSERT INTO public.numbers VALUES (n::int) $$;
         SELECT nats_subscribe('ha.slow', 'slow')",
    )
    .await;
    until_state(&fenced.session, "ha.slow", "live").await;
    let client = fenced.scene.nats.client().await;
    for n in 0..100 {
        client
            .publish("ha.slow", n.to_string().into())
            .await
            .expect("publish");
    }
    round_trip(&client).await;
    fenced.stub.say(Answer::role("replica"));
    until_state(&fenced.session, "ha.slow", "fenced").await;
    let count = "SELECT count(*)::text FROM numbers";
    tokio::time::sleep(LOOKS).await; // what is in execution may end
    let before = text(&fenced.session, count).await;
    println!("{before} of 100 had been taken");
    assert!(before.parse::<usize>().is_ok_and(|n| n < 100));
    tokio::time::sleep(LOOKS).await;
    assert_eq!(text(&fenced.session, count).await, before);
}

/// A reload takes up another Patroni; a reload of PostgreSQL turns fencing off and on.
#[tokio::test]
async fn reloads_take_effect() {
    let fenced = Fenced::start(Answer::role("primary")).await;
    fenced.until("live").await;
    let other = Stub::start(Answer::role("replica")).await;
    let move_to = async |url: String| {
        let sql = format!("ALTER SERVER nats OPTIONS (SET patroni_url '{url}')");
        run(&fenced.session, &sql).await;
        run(&fenced.session, "SELECT litmus_pgnats_reload_conf()").await;
    };
    move_to(other.url() + "/patroni").await;
    fenced.until("fenced").await;
    move_to(fenced.stub.url()).await;
    fenced.until("live").await;
    let asked = other.asked();
    fenced.stays_live("the other Patroni does not count").await;
    assert_eq!(other.asked(), asked, "the former Patroni is asked still");

    fenced.stub.say(Answer::role("replica"));
    fenced.until("fenced").await;
    for (setting, state) in [("off", "live"), ("on", "fenced")] {
        fenced
            .scene
            .pg
            .append_conf("litmus_pgnats.patroni_fencing", setting);
        fenced.scene.pg.reload();
        fenced.until(state).await;
    }
    run(&fenced.session, "ALTER SERVER nats OPTIONS (DROP patroni_url)").await;
    run(&fenced.session, "SELECT litmus_pgnats_reload_conf()").await;
    fenced.until("live").await;
}

/// It is off unless it is turned on.
#[tokio::test]
async fn without_the_setting_nothing_is_fenced() {
    let fenced = Fenced::start(Answer::role("replica")).await;
    fenced
        .scene
        .pg
        .append_conf("litmus_pgnats.patroni_fencing", "off");
    fenced.scene.pg.reload();
    fenced.until("live").await;
    fenced.stays_live("fencing is off").await;
}
