//! What the replies of the REST API mean.

use super::*;

#[test]
fn reply_error_joins_causes() {
    let message = Message::http("boot the guest", "PUT", "/api/v1/vm.boot", None);
    let outcome = |status, body: &str| {
        BACKEND.reply(&message, &ControlReply::Http { status, body: body.into() })
    };
    assert_eq!(outcome(204, ""), ReplyOutcome::Done);
    assert_eq!(outcome(200, "{}"), ReplyOutcome::Done);
    assert_eq!(
        outcome(500, r#"["The VM could not boot", "Cannot open kernel file", "No such file"]"#),
        ReplyOutcome::Rejected(
            "The VM could not boot: Cannot open kernel file: No such file".to_string()
        )
    );
    for body in ["", "[]", "oops", "[1]"] {
        let ReplyOutcome::Rejected(text) = outcome(500, body) else {
            panic!("{body} was not refused")
        };
        assert!(text.contains("500"), "{text}");
    }
    let broken = BACKEND.reply(&message, &ControlReply::Broken("closed".into()));
    assert_eq!(broken, ReplyOutcome::Lost("closed".into()));
}
