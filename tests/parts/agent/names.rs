//! A name server of the test's own: what it answers is what the test says.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{net::UdpSocket, task::JoinHandle};

const TYPE_A: u16 = 1;
/// Bytes before the question.
const HEADER: usize = 12;

/// What is answered to a question for an address.
#[derive(Clone, Copy, Debug)]
pub enum Reply {
    Address(Ipv4Addr),
    /// SERVFAIL.
    ServerFailure,
    /// Nothing at all.
    Silence,
}

/// Answers questions for any name, on loopback.
pub struct NameServer {
    port: u16,
    reply: Arc<Mutex<Reply>>,
    questions: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl NameServer {
    pub async fn start(reply: Reply) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let (reply, questions) = (Arc::new(Mutex::new(reply)), Arc::new(AtomicU64::new(0)));
        let (says, counts) = (reply.clone(), questions.clone());
        let task = tokio::spawn(async move {
            let mut packet = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut packet).await.unwrap();
                counts.fetch_add(1, Ordering::Relaxed);
                let reply = *says.lock().unwrap();
                if let Some(answer) = answer(&packet[..length], reply) {
                    socket.send_to(&answer, from).await.unwrap();
                }
            }
        });
        Self { port, reply, questions, task }
    }

    pub fn says(&self, reply: Reply) {
        *self.reply.lock().unwrap() = reply;
    }

    /// Questions so far.
    pub fn questions(&self) -> u64 {
        self.questions.load(Ordering::Relaxed)
    }

    /// The resolver's configuration. A port is what c-ares understands, and libc does not.
    pub fn configuration(&self) -> String {
        format!("nameserver 127.0.0.1:{}\noptions timeout:1 attempts:2\n", self.port)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// RFC 1035, 4.1. Of an address, the time to live is an hour: how long an answer counts is for the one who asked to decide.
fn answer(question: &[u8], reply: Reply) -> Option<Vec<u8>> {
    let mut end = HEADER;
    while *question.get(end)? != 0 {
        end += usize::from(question[end]) + 1;
    }
    let type_ = u16::from_be_bytes([*question.get(end + 1)?, *question.get(end + 2)?]);
    let address = match reply {
        Reply::Address(address) if type_ == TYPE_A => Some(address),
        Reply::Address(_) | Reply::ServerFailure => None,
        Reply::Silence => return None,
    };
    // an answer, recursion was desired and is available; 2: SERVFAIL
    let code = if matches!(reply, Reply::ServerFailure) { 2 } else { 0 };
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    answer.extend(question.get(HEADER..end + 5)?);
    if let Some(address) = address {
        // the name of the question, A, IN
        answer.extend([0xc0, 12, 0, 1, 0, 1]);
        answer.extend(3600_u32.to_be_bytes());
        answer.extend([0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
