//! An answer about many pods is taken apart on a thread of its own, while the next pieces of it arrive and another answer is taken
//! apart beside it: it is most of what a reading costs the operator, and no other task of the runtime waits for it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{self, Receiver, Sender},
    },
    task::{self, JoinHandle},
};

use super::{
    error::ReadFailure,
    response::{Series, Splitter},
};

/// Pieces that wait to be taken apart. A piece is what one read of the connection yields: mostly some 10 KB.
const PIECES: usize = 16;
/// And how many bytes they have together: a piece may have hundreds of KB where the other end is fast.
const BYTES: u32 = 256 << 10;

/// What takes in the series of an answer, one after the other, and keeps of them what is wanted.
pub(super) trait Take: Send + 'static {
    /// What it has kept.
    type Taken: Send + 'static;

    /// Takes in one series.
    fn take(&mut self, series: &Series);

    /// Takes notice of a series that is larger than is kept, of which this is the beginning. False where the answer is refused for it;
    /// else the rest of it is passed over.
    fn pass_over(&mut self, _begun: &[u8]) -> bool {
        false
    }

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
    pieces: Sender<Piece>,
    room: Arc<Semaphore>,
    thread: JoinHandle<Result<ArrivedResponse<T>, ReadFailure>>,
}

/// A piece, and the room that it takes up until it has been taken apart.
type Piece = (Bytes, OwnedSemaphorePermit);

/// One answer that has arrived.
#[derive(Debug)]
pub(super) struct ArrivedResponse<T> {
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
        let room = Arc::new(Semaphore::new(BYTES as usize));
        Self { pieces, room, thread: task::spawn_blocking(move || take_apart(arriving, largest_kept, take)) }
    }

    /// The answer, once all has arrived.
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn finish(self) -> Result<ArrivedResponse<T>, ReadFailure> {
        drop(self.pieces);
        joined(self.thread.await)
    }
}

impl<T: Send + 'static> Receive for Intake<T> {
    async fn receive(&mut self, piece: Bytes) -> Result<(), ReadFailure> {
        let bytes = u32::try_from(piece.len()).unwrap_or(BYTES).min(BYTES);
        // nobody closes it
        if let Ok(room) = self.room.clone().acquire_many_owned(bytes).await
            && self.pieces.send((piece, room)).await.is_ok()
        {
            return Ok(());
        }
        joined((&mut self.thread).await).map(drop)
    }
}

/// What the thread says, or its panic.
fn joined<T>(
    outcome: Result<Result<ArrivedResponse<T>, ReadFailure>, task::JoinError>,
) -> Result<ArrivedResponse<T>, ReadFailure> {
    match outcome {
        Ok(outcome) => outcome,
        // nobody aborts it: it is not known outside, and ends when the pieces do
        Err(ended) => std::panic::resume_unwind(ended.into_panic()),
    }
}

fn take_apart<T: Take>(
    mut arriving: Receiver<Piece>,
    largest_kept: usize,
    mut take: T,
) -> Result<ArrivedResponse<T::Taken>, ReadFailure> {
    let (mut splitter, mut bytes) = (Splitter::default(), 0);
    while let Some((piece, _room)) = arriving.blocking_recv() {
        bytes += piece.len();
        splitter.push(&piece, |bytes| Series::first_of(bytes, |series| take.take(series)))?;
        if splitter.kept() > largest_kept {
            if splitter.begun().is_some_and(|begun| take.pass_over(begun)) {
                splitter.pass_over();
            }
            if splitter.kept() > largest_kept {
                return Err(ReadFailure::BesideSeries { limit: largest_kept });
            }
        }
    }
    Ok(ArrivedResponse { kept: take.taken(), rest: splitter.rest(), bytes })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::FutureExt as _;

    use super::*;

    /// Takes a series in only when it is told to.
    struct Slow(mpsc::Receiver<()>);

    impl Take for Slow {
        type Taken = ();

        fn take(&mut self, _: &Series) {
            let _ = self.0.recv();
        }

        fn taken(self) {}
    }

    #[tokio::test]
    async fn who_sends_faster_than_it_is_taken_apart_waits_after_a_quarter_of_a_megabyte() {
        let (go_on, told) = mpsc::channel();
        let mut intake = Intake::new(1 << 20, Slow(told));
        let room = " ".repeat(200 << 10);
        let first = format!(r#"{{"status":"success","data":{{"result":[{{"metric":{{}},"value":[1,"1"]}},{room}"#);
        intake.receive(first.into()).await.unwrap();
        assert!(intake.receive(room.clone().into()).now_or_never().is_none(), "the first has not been taken apart");
        go_on.send(()).unwrap();
        intake.receive(room.into()).await.unwrap();
        intake.receive("]}}".into()).await.unwrap();
        assert!(intake.finish().await.is_ok());
    }
}
