//! An answer about many pods is taken apart on a thread of its own, while the next pieces of it arrive and another answer is taken
//! apart beside it: it is most of what a reading costs the operator, and no other task of the runtime waits for it.

use bytes::Bytes;
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    task::{self, JoinHandle},
};

use super::{
    collect::{Collected, Collector},
    error::ReadFailure,
    response::{Series, Splitter},
};

/// Pieces that wait to be taken apart. A piece is what one read of the connection yields: some 10 KB.
const PIECES: usize = 16;

/// One answer that arrives.
#[derive(Debug)]
pub(super) struct Intake {
    pieces: Sender<Bytes>,
    thread: JoinHandle<Result<Taken, ReadFailure>>,
}

/// One answer that has arrived.
#[derive(Debug)]
pub(super) struct Taken {
    pub collected: Collected,
    /// The answer without its series.
    pub rest: Vec<u8>,
    /// How many bytes it had.
    pub bytes: usize,
}

impl Intake {
    /// Waits for an answer of which no more than this is kept beside its whole series, in bytes.
    pub fn new(largest_kept: usize) -> Self {
        let (pieces, arriving) = mpsc::channel(PIECES);
        Self { pieces, thread: task::spawn_blocking(move || take_apart(arriving, largest_kept)) }
    }

    /// Takes in the next piece.
    ///
    /// # Errors
    /// Why what came before is refused. Nothing is taken in afterwards.
    pub async fn push(&mut self, piece: Bytes) -> Result<(), ReadFailure> {
        if self.pieces.send(piece).await.is_ok() {
            return Ok(());
        }
        joined((&mut self.thread).await).map(drop)
    }

    /// The answer, once all has arrived.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn finish(self) -> Result<Taken, ReadFailure> {
        drop(self.pieces);
        joined(self.thread.await)
    }
}

/// What the thread says, or its panic.
fn joined(outcome: Result<Result<Taken, ReadFailure>, task::JoinError>) -> Result<Taken, ReadFailure> {
    match outcome {
        Ok(outcome) => outcome,
        // nobody aborts it: it is not known outside, and ends when the pieces do
        Err(ended) => std::panic::resume_unwind(ended.into_panic()),
    }
}

fn take_apart(mut arriving: Receiver<Bytes>, largest_kept: usize) -> Result<Taken, ReadFailure> {
    let (mut splitter, mut collector, mut bytes) = (Splitter::default(), Collector::default(), 0);
    while let Some(piece) = arriving.blocking_recv() {
        bytes += piece.len();
        splitter.push(&piece, |bytes| Series::first_of(bytes, |series| collector.add(series)))?;
        if splitter.kept() > largest_kept {
            return Err(ReadFailure::BesideSeries { limit: largest_kept });
        }
    }
    Ok(Taken { collected: collector.collected(), rest: splitter.rest(), bytes })
}
