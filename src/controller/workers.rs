//! The threads on which everything runs whose work grows with pools and pods, apart from what answers others.

use std::time::Duration;

use kube::Client;
use tokio::{runtime::Handle, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::http::Pulse;

/// Time between two signs of life of the workers.
const BEAT: Duration = Duration::from_secs(1);

/// Where the work is done whose amount grows with pools and pods.
pub struct Workers {
    /// Where watches and connections live.
    pub handle: Handle,
    /// Whose connections live there.
    pub client: Client,
    pulse: Pulse,
    stop: CancellationToken,
    threads: JoinSet<()>,
}

impl Workers {
    /// None yet. `client` has its connections where `handle` leads.
    pub fn new(handle: Handle, client: Client, pulse: Pulse) -> Self {
        Self { handle, client, pulse, stop: CancellationToken::new(), threads: JoinSet::new() }
    }

    /// Has a thread of its own do this, until it is done or [`Self::end`] is called.
    pub fn begin<F>(&mut self, who: &'static str, work: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()>,
    {
        let (handle, pulse, stop) = (self.handle.clone(), self.pulse.clone(), self.stop.clone());
        let thread = move || {
            handle.block_on(async {
                tokio::select! {
                    biased; // nothing more is begun once it is to end
                    () = stop.cancelled() => {}
                    () = beat(who, pulse) => {}
                    () = work() => {}
                }
            });
        };
        self.threads.spawn_blocking_on(thread, &self.handle);
    }

    /// Waits until one of them has ended.
    pub async fn one_ended(&mut self) {
        let _ = self.threads.join_next().await;
    }

    /// Ends everything that was begun, and waits until it has.
    pub async fn end(&mut self) {
        self.stop.cancel();
        while self.threads.join_next().await.is_some() {}
    }
}

/// Shows for ever that whoever shares a thread with it comes round.
pub async fn beat(who: &'static str, pulse: Pulse) {
    loop {
        pulse.beat(who);
        sleep(BEAT).await;
    }
}
