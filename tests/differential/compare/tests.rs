use super::super::cases::{bytes, get, post, says};
use super::*;

fn seen(head: &str, body: &str, extent: Extent) -> Seen {
    Seen {
        head: head.into(),
        body: body.into(),
        extras: Vec::new(),
        extent,
        tunnel: Vec::new(),
    }
}

fn raw(got: &str, end: End, seen: &[Seen]) -> Raw {
    Raw {
        talks: vec![(got.into(), end)],
        seen: seen.to_vec(),
        addresses: vec![("127.0.0.1:40001".to_owned(), "VENDOR")],
    }
}

fn found(case: &Case, other: &Raw, ours: &Raw) -> (bool, Vec<&'static str>) {
    let (difference, permitted) = compare(case, other, ours);
    (difference.is_some(), permitted)
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const LOCAL: &str = "HTTP/1.1 404 Not Found\r\nProxy-Status: countersign\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno";

#[test]
fn what_must_differ_is_no_difference() {
    let one = "HTTP/1.1 404 No\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nX-Request-Id: 0190b3a4-0000-7000-8000-0123456789ab\r\nX: 127.0.0.1:40001\r\nContent-Length: 0\r\n\r\n";
    let two = one
        .replace("01 Jan", "02 Jan")
        .replace("89ab", "89ff")
        .replace("40001", "50001");
    let case = Case::sending("", get("/v/x", ""));
    let other = raw(one, End::Open, &[]);
    let mut ours = raw(&two, End::Open, &[]);
    ours.addresses[0].0 = "127.0.0.1:50001".to_owned();
    assert_eq!(found(&case, &other, &ours), (false, vec![]));
    ours.addresses.clear();
    assert!(found(&case, &other, &ours).0);
}

#[test]
fn everything_else_is_one() {
    let case = Case::sending("", get("/v/x", ""));
    let head = "GET /x HTTP/1.1\r\n\r\n";
    let right = raw(OK, End::Open, &[seen(head, "", Extent::Whole)]);
    let saw = |seen: Seen| raw(OK, End::Open, &[seen]);
    let twice = [seen(head, "", Extent::Whole), seen(head, "", Extent::Whole)];
    let mut with_trailer = seen(head, "", Extent::Whole);
    with_trailer.extras.push(b"X: y".to_vec());
    let mut with_more = seen(head, "", Extent::Whole);
    with_more.tunnel.push(0);
    for wrong in [
        raw(OK, End::Closed, &right.seen),
        raw(OK, End::Reset, &right.seen),
        raw("", End::Open, &right.seen),
        raw(&OK[..OK.len() - 1], End::Open, &right.seen),
        raw(&format!("{OK}!"), End::Open, &right.seen),
        raw(&format!("{OK}{OK}"), End::Open, &right.seen),
        raw(&OK.replace("ok", "no"), End::Open, &right.seen),
        raw(&OK.replace("200 OK", "200 Ok"), End::Open, &right.seen),
        raw(
            &OK.replace("Content-L", "Content-l"),
            End::Open,
            &right.seen,
        ),
        raw(
            &OK.replace("Content", "X: y\r\nContent"),
            End::Open,
            &right.seen,
        ),
        raw(OK, End::Open, &[]),
        raw(OK, End::Open, &twice),
        saw(seen("GET /y HTTP/1.1\r\n\r\n", "", Extent::Whole)),
        saw(seen(head, "x", Extent::Whole)),
        saw(seen(head, "", Extent::Cut)),
        saw(seen(head, "", Extent::Garbled)),
        saw(with_trailer),
        saw(with_more),
    ] {
        assert!(found(&case, &right, &wrong).0, "{wrong:?}");
        assert!(found(&case, &wrong, &right).0, "{wrong:?}");
    }
}

#[test]
fn a_connection_may_be_kept_after_a_local_reply() {
    let pipelined = get("/nobody", "") + &get("/v/x", "");
    let case = Case::sending("", pipelined);
    let head = [seen("GET /x HTTP/1.1\r\n\r\n", "", Extent::Whole)];
    let other = raw(LOCAL, End::Closed, &[]);
    let kept = LOCAL.replace("Connection: close\r\n", "");
    let ours = raw(&format!("{kept}{OK}"), End::Open, &head);
    assert_eq!(found(&case, &other, &ours), (false, vec!["kept"]));
    let said = LOCAL.replace("close", "keep-alive");
    let said = raw(&format!("{said}{OK}"), End::Open, &head);
    assert_eq!(found(&case, &other, &said), (false, vec!["kept"]));
    // The other way round it would be a step back.
    assert!(found(&case, &ours, &other).0);
    // One more than were sent, for the caller or the vendor.
    let more = raw(&format!("{kept}{OK}{OK}"), End::Open, &head);
    assert!(found(&case, &other, &more).0);
    let more = raw(
        &format!("{kept}{OK}"),
        End::Open,
        &[head.clone(), head.clone()].concat(),
    );
    assert!(found(&case, &other, &more).0);
    // Another local reply.
    let wrong = raw(
        &format!("{}{OK}", kept.replace("no", "na")),
        End::Open,
        &head,
    );
    assert!(found(&case, &other, &wrong).0);
    // What follows can be read in two ways.
    let odd = Case::sending(
        "",
        get("/nobody", "") + "GET /v/x HTTP/1.1\nHost: localhost\n\n",
    );
    assert!(found(&odd, &other, &ours).0);
    // A vendor's own response is not such a reason.
    let plain = Case::sending("", get("/v/1", "") + &get("/v/2", ""));
    let two = [head.clone(), head.clone()].concat();
    let (one, both) = (
        raw(OK, End::Closed, &head),
        raw(&format!("{OK}{OK}"), End::Open, &two),
    );
    assert!(found(&plain, &one, &both).0);
}

#[test]
fn a_body_without_an_end_may_be_shorter() {
    let sent = post("/v/x", "", "hello");
    let case = Case::sending("", &sent[..sent.len() - 1]);
    let saw = |body: &str, extent| raw("", End::Closed, &[seen("POST", body, extent)]);
    let whole = saw("hell", Extent::Cut);
    assert_eq!(
        found(&case, &whole, &saw("he", Extent::Cut)),
        (false, vec!["incomplete body"])
    );
    assert!(found(&case, &whole, &saw("ha", Extent::Cut)).0);
    assert!(found(&case, &whole, &saw("hell", Extent::Whole)).0);
}

#[test]
fn interim_responses_may_be_missing_for_old_callers_alone() {
    let interim = format!("HTTP/1.1 103 Hints\r\nX: y\r\n\r\n{OK}");
    let (other, ours) = (raw(&interim, End::Closed, &[]), raw(OK, End::Closed, &[]));
    let old = Case::sending("", "GET /v/x HTTP/1.0\r\n\r\n");
    assert_eq!(found(&old, &other, &ours), (false, vec!["interim"]));
    assert!(found(&old, &ours, &other).0);
    assert!(found(&Case::sending("", get("/v/x", "")), &other, &ours).0);
    // The second caller's version counts for the second response.
    let second = Case::sending("", get("/v/x", "") + "GET /v/x HTTP/1.0\r\n\r\n");
    let other = raw(&format!("{OK}{interim}"), End::Closed, &[]);
    let ours = raw(&format!("{OK}{OK}"), End::Closed, &[]);
    assert_eq!(found(&second, &other, &ours), (false, vec!["interim"]));
    let other = raw(&format!("{interim}{OK}"), End::Closed, &[]);
    assert!(found(&second, &other, &ours).0);
}

#[test]
fn dates_and_the_obvious_may_be_missing() {
    let case = Case::sending("", get("/v/x", ""));
    let with = |fields: &str, end| {
        raw(
            &OK.replace("Content", &format!("{fields}Content")),
            end,
            &[],
        )
    };
    let plain = raw(OK, End::Open, &[]);
    let same = |other: &Raw, ours: &Raw| found(&case, other, ours) == (false, vec!["dates"]);
    assert!(same(&plain, &with("Date: x\r\n", End::Open)));
    assert!(same(&with("connection: Keep-Alive\r\n", End::Open), &plain));
    let closed = raw(OK, End::Closed, &[]);
    assert!(same(&with("Connection: close\r\n", End::Closed), &closed));
    assert!(found(&case, &with("Connection: close\r\n", End::Open), &plain).0);
    let promised = with("Connection: keep-alive\r\n", End::Closed);
    assert!(
        found(
            &case,
            &with("Connection: close\r\n", End::Closed),
            &promised
        )
        .0
    );
    assert!(found(&case, &with("Connection: X\r\n", End::Closed), &closed).0);
}

#[test]
fn a_caller_that_ended_its_side_may_get_its_response() {
    let case = Case::new("", vec![says(get("/v/x", "")), Step::HalfClose]);
    let head = [seen("GET /x HTTP/1.1\r\n\r\n", "", Extent::Whole)];
    let (other, ours) = (raw("", End::Closed, &head), raw(OK, End::Closed, &head));
    assert_eq!(found(&case, &other, &ours), (false, vec!["half-closed"]));
    assert!(!found(&case, &raw("", End::Closed, &[]), &ours).0);
    let cut = [seen("GET /x HTTP/1.1\r\n\r\n", "", Extent::Cut)];
    assert!(!found(&case, &raw("", End::Closed, &cut), &ours).0);
    let twice = raw(OK, End::Closed, &[head.clone(), head.clone()].concat());
    assert!(found(&case, &other, &twice).0);
    assert!(found(&case, &ours, &other).0);
    assert!(found(&Case::sending("", get("/v/x", "")), &other, &ours).0);
}

#[test]
fn a_refused_head_may_get_a_problem() {
    let case = Case::sending("", "GET\r\n\r\n");
    let bare = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
    let problem = "HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\nContent-Length: 2\r\n\r\n{}";
    let (other, ours) = (raw(bare, End::Closed, &[]), raw(problem, End::Closed, &[]));
    assert_eq!(found(&case, &other, &ours), (false, vec!["refused head"]));
    assert!(found(&case, &ours, &other).0);
    let another = raw(&problem.replace("400", "404"), End::Closed, &[]);
    assert!(found(&case, &other, &another).0);
}

#[test]
fn a_refused_head_may_be_refused_in_other_words() {
    let refusal = |detail: &str, reason: &str| {
        let body = format!("{{\"detail\":\"{detail}\",\"reason\":\"{reason}\"}}");
        let head = "HTTP/1.1 400 Bad Request\r\nProxy-Status: countersign";
        format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let case = Case::sending("", get("/v/x", ""));
    let parser = "The request's head cannot be parsed.";
    let other = raw(&refusal(parser, "bad_request"), End::Closed, &[]);
    let ours = raw(
        &refusal("Host is repeated.", "bad_request"),
        End::Closed,
        &[],
    );
    assert_eq!(found(&case, &other, &ours), (false, vec!["words"]));
    assert!(found(&case, &ours, &other).0, "a step back");
    let reason = raw(&refusal("Host is repeated.", "no_vendor"), End::Closed, &[]);
    assert!(found(&case, &other, &reason).0);
}

#[test]
fn a_response_in_chunks_that_are_none_may_be_broken_off() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (chunks, may) in [("\r\n0\r\n\r\n", true), ("2\r\nok\r\n0\r\n\r\n", false)] {
        let mut case = Case::sending("", get("/v/x", ""));
        case.answers = vec![bytes(format!("{head}{chunks}"))];
        let other = raw(&format!("{head}0\r\n\r\n"), End::Open, &[]);
        let ours = raw(head, End::Closed, &[]);
        let permitted = if may { vec!["invalid chunks"] } else { vec![] };
        assert_eq!(found(&case, &other, &ours), (!may, permitted), "{chunks:?}");
        assert!(found(&case, &ours, &other).0, "a step back");
    }
}
