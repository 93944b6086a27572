//! PURE: as much of DNS messages (RFC 1035, 4.1) as it takes to keep answers and give them again.

/// Bytes before the question.
const HEADER: usize = 12;
/// A record that says something of the message, not of a name: what stands in the place of its time to live is none.
const OPT: u16 = 41;
/// `RCODE`: no error.
const NO_ERROR: u8 = 0;
/// `RCODE`: the name server failed.
const SERVER_FAILURE: u8 = 2;
/// `RCODE`: there is no such name, which is an answer.
const NO_SUCH_NAME: u8 = 3;

/// What was asked: name in small letters, type and class.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Question(Vec<u8>);

/// What a message says to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// The answer, which may be that there is none. Whoever is given it is not to keep it.
    Answer(Vec<u8>),
    /// Too long for a datagram: to be asked again in another way.
    Truncated,
    /// The name server could not find out, or did not want to.
    Failure,
}

/// The question of a message and where it ends; None when the message is none that is understood.
fn asked(message: &[u8]) -> Option<(Question, usize)> {
    if u16_at(message, 4)? != 1 {
        return None;
    }
    let mut end = HEADER;
    loop {
        match *message.get(end)? {
            0 => break,
            length if length < 64 => end += usize::from(length) + 1,
            _ => return None,
        }
    }
    // the last label, type and class
    let end = end + 5;
    let question = message.get(HEADER..end)?;
    Some((Question(question.to_ascii_lowercase()), end))
}

/// What a query asks; None when it is none.
pub fn question(query: &[u8]) -> Option<Question> {
    let is_query = query.get(2)? & 0x80 == 0;
    asked(query).filter(|_| is_query).map(|(question, _)| question)
}

/// What a message says to a query; None when it does not answer it.
pub fn read(query: &[u8], message: &[u8]) -> Option<Said> {
    let (question, end) = asked(message)?;
    let (flags, code) = (*message.get(2)?, *message.get(3)? & 0x0f);
    let is_ours = query.get(..2)? == message.get(..2)? && flags & 0x80 != 0;
    if !is_ours || asked(query).is_none_or(|(asked, _)| asked != question) {
        return None;
    }
    Some(match code {
        _ if flags & 0x02 != 0 => Said::Truncated,
        NO_ERROR | NO_SUCH_NAME => not_to_be_kept(message, end).map_or(Said::Failure, Said::Answer),
        _ => Said::Failure,
    })
}

/// The same message with no time to live; None when it is malformed.
fn not_to_be_kept(message: &[u8], end: usize) -> Option<Vec<u8>> {
    let mut kept = message.to_owned();
    let mut records: u32 = 0;
    for section in [6, 8, 10] {
        records += u32::from(u16_at(message, section)?);
    }
    let mut at = end;
    for _ in 0..records {
        at = after_name(message, at)?;
        let length = usize::from(u16_at(message, at + 8)?);
        if u16_at(message, at)? != OPT {
            kept.get_mut(at + 4..at + 8)?.fill(0);
        }
        at += 10 + length;
        message.get(..at)?;
    }
    Some(kept)
}

fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            pointer if pointer >= 0xc0 => return Some(at + 2),
            length if length < 64 => at += usize::from(length) + 1,
            _ => return None,
        }
    }
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]))
}

/// An answer to an earlier query, as one to this query that asks the same.
pub fn again(answer: &[u8], query: &[u8]) -> Vec<u8> {
    let mut answer = answer.to_owned();
    if let (Some(now), Some(then)) = (query.get(..2), answer.get_mut(..2)) {
        then.copy_from_slice(now);
    }
    answer
}

/// The answer of a name server that could not find out; None when the query is none.
pub fn failure(query: &[u8]) -> Option<Vec<u8>> {
    let (_, end) = asked(query)?;
    let mut answer = query.get(..end)?.to_owned();
    // a response, which keeps whether recursion was desired, with recursion available
    let flags = [0x80 | (query.get(2)? & 0x79), 0x80 | SERVER_FAILURE];
    answer.get_mut(2..4)?.copy_from_slice(&flags);
    answer.get_mut(6..HEADER)?.fill(0);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A query for the address of `db.test`.
    fn query(id: u16) -> Vec<u8> {
        let mut query = id.to_be_bytes().to_vec();
        query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, b'd', b'b', 4, b't', b'e', b's', b't', 0, 0, 1, 0, 1]);
        query
    }

    /// Its answer: one address, a name server's own record, and an OPT.
    fn answer(id: u16) -> Vec<u8> {
        let mut answer = query(id);
        answer[2..4].copy_from_slice(&[0x81, 0x80]);
        (answer[7], answer[9], answer[11]) = (1, 1, 1);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 127, 0, 0, 2]);
        answer.extend([4, b't', b'e', b's', b't', 0, 0, 2, 0, 1, 0, 0, 14, 16, 0, 2, 0xc0, 12]);
        answer.extend([0, 0, 41, 16, 0, 9, 9, 9, 9, 0, 0]);
        answer
    }

    #[test]
    fn an_answer_is_given_again_to_whoever_asks_the_same_and_is_never_to_be_kept() {
        let Some(Said::Answer(kept)) = read(&query(7), &answer(7)) else { panic!("it is an answer") };
        assert_eq!(kept.len(), answer(7).len());
        let changed: Vec<usize> = (0..kept.len()).filter(|at| kept[*at] != answer(7)[*at]).collect();
        assert_eq!(changed, [33, 34, 53, 54], "the times to live, and not that of the OPT");
        assert!(changed.iter().all(|at| kept[*at] == 0));
        assert_eq!(question(&query(7)), question(&query(8)));
        assert_eq!(again(&kept, &query(8))[..2], [0, 8]);
        let mut shouted = query(9);
        shouted[13] = b'D';
        assert_eq!(question(&shouted), question(&query(7)));
    }

    #[test]
    fn what_answers_another_question_is_no_answer() {
        assert_eq!(read(&query(7), &answer(8)), None, "another number");
        assert_eq!(read(&query(7), &query(7)), None, "a question");
        let mut other = answer(7);
        other[13] = b'x';
        assert_eq!(read(&query(7), &other), None, "another name");
        let mut kind = answer(7);
        kind[22] = 28;
        assert_eq!(read(&query(7), &kind), None, "another type");
    }

    #[test]
    fn failures_are_told_from_names_that_do_not_exist() {
        for (code, fails) in [(0, false), (1, true), (2, true), (3, false), (5, true)] {
            let mut message = answer(7);
            message[3] = 0x80 | code;
            assert_eq!(read(&query(7), &message) == Some(Said::Failure), fails, "{code}");
        }
        let mut long = answer(7);
        long[2] |= 2;
        assert_eq!(read(&query(7), &long), Some(Said::Truncated));
        assert_eq!(read(&query(7), &failure(&query(7)).unwrap()), Some(Said::Failure));
    }

    #[test]
    fn a_message_that_breaks_off_is_a_failure_and_never_kept() {
        let whole = answer(7);
        for end in query(7).len()..whole.len() {
            assert_eq!(read(&query(7), &whole[..end]), Some(Said::Failure), "{end}");
        }
        for end in 0..query(7).len() {
            assert_eq!(read(&query(7), &whole[..end]), None, "{end}");
        }
    }

    proptest! {
        #[test]
        fn no_message_panics(
            message in prop::collection::vec(any::<u8>(), 0..80),
            (at, byte) in (0..60_usize, any::<u8>()),
        ) {
            let mut bent = answer(7);
            let length = bent.len();
            bent[at % length] = byte;
            for message in [message, bent] {
                let _ = (question(&message), read(&query(7), &message), failure(&message), again(&message, &query(1)));
            }
        }
    }
}
