//! An answer about many pods is taken apart on a thread of its own, while the next pieces of it arrive and another answer is taken
//! apart beside it: it is most of what a reading costs the operator, and no other task of the runtime waits for it.

use bytes::Bytes;
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    task::{self, JoinHandle},
};

use super::{
    error::ReadFailure,
    response::{Series, Splitter},
};

/// Pieces that wait to be taken apart. A piece is what one read of the connection yields: some 10 KB.
const PIECES: usize = 16;

/// What takes in the series of an answer, one after the other, and keeps of them what is wanted.
pub(super) trait Take: Send + 'static {
    /// What it has kept.
    type Taken: Send + 'static;

    /// Takes in one series.
    fn take(&mut self, series: &Series);

    /// What it has kept, once all have come.
    fn taken(self) -> Self::Taken;
}

/// Where the pieces of an answer go, in their order.
pub(super) trait Receive: Send {
    /// Takes in the next piece.
    ///
    /// # Errors
    /// Why what has come is refused. Nothing is taken in afterwards.
    fn receive(&mut self, piece: Bytes) -> impl Future<Output = Result<(), ReadFailure>> + Send;
}

/// An answer that is kept as it is, up to a size.
#[derive(Debug)]
pub(super) struct Body {
    /// What has arrived.
    pub bytes: Vec<u8>,
    /// The most that is kept, in bytes.
    pub limit: usize,
}

impl Receive for Body {
    async fn receive(&mut self, piece: Bytes) -> Result<(), ReadFailure> {
        if self.bytes.len() + piece.len() > self.limit {
            return Err(ReadFailure::LargerThanANumber { limit: self.limit });
        }
        self.bytes.extend_from_slice(&piece);
        Ok(())
    }
}

/// One answer that arrives.
#[derive(Debug)]
pub(super) struct Intake<T> {
    pieces: Sender<Bytes>,
    thread: JoinHandle<Result<Taken<T>, ReadFailure>>,
}

/// One answer that has arrived.
#[derive(Debug)]
pub(super) struct Taken<T> {
    /// What was kept of its series.
    pub kept: T,
    /// The answer without its series.
    pub rest: Vec<u8>,
    /// How many bytes it had.
    pub bytes: usize,
}

impl<T: Send + 'static> Intake<T> {
    /// Waits for an answer whose series are taken in by `take`, and of which no more than this is kept beside, in bytes.
    pub fn new(largest_kept: usize, take: impl Take<Taken = T>) -> Self {
        let (pieces, arriving) = mpsc::channel(PIECES);
        Self { pieces, thread: task::spawn_blocking(move || take_apart(arriving, largest_kept, take)) }
    }

    /// The answer, once all has arrived.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn finish(self) -> Result<Taken<T>, ReadFailure> {
        drop(self.pieces);
        joined(self.thread.await)
    }
}

impl<T: Send + 'static> Receive for Intake<T> {
    async fn receive(&mut self, piece: Bytes) -> Result<(), ReadFailure> {
        if self.pieces.send(piece).await.is_ok() {
            return Ok(());
        }
        joined((&mut self.thread).await).map(drop)
    }
}

/// What the thread says, or its panic.
fn joined<T>(outcome: Result<Result<Taken<T>, ReadFailure>, task::JoinError>) -> Result<Taken<T>, ReadFailure> {
    match outcome {
        Ok(outcome) => outcome,
        // nobody aborts it: it is not known outside, and ends when the pieces do
        Err(ended) => std::panic::resume_unwind(ended.into_panic()),
    }
}

fn take_apart<T: Take>(
    mut arriving: Receiver<Bytes>,
    largest_kept: usize,
    mut take: T,
) -> Result<Taken<T::Taken>, ReadFailure> {
    let (mut splitter, mut bytes) = (Splitter::default(), 0);
    while let Some(piece) = arriving.blocking_recv() {
        bytes += piece.len();
        splitter.push(&piece, |bytes| Series::first_of(bytes, |series| take.take(series)))?;
        if splitter.kept() > largest_kept {
            return Err(ReadFailure::BesideSeries { limit: largest_kept });
        }
    }
    Ok(Taken { kept: take.taken(), rest: splitter.rest(), bytes })
}
