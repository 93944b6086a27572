//! An API server that is far away: every byte from it takes its time.

use std::{path::PathBuf, time::Duration};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// A way to the API server of the lab that delays each of its answers.
pub struct Far {
    scratch: TempDir,
    task: JoinHandle<()>,
}

impl Far {
    /// Opens it.
    pub async fn start(delay: Duration) -> Self {
        let kubeconfig = std::env::var("KUBECONFIG").expect("KUBECONFIG of the lab");
        let text = std::fs::read_to_string(kubeconfig).expect("a kubeconfig");
        let server = text.split_once("https://").expect("a server").1;
        let server = server.split(['"', ',', '}', '\n']).next().expect("an address").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let scratch = tempfile::tempdir().expect("a directory");
        let near = text.replace(&server, &format!("127.0.0.1:{port}"));
        std::fs::write(scratch.path().join("kubeconfig"), near).expect("written");
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(&server).await {
                        forward(client, server, delay).await;
                    }
                });
            }
        });
        Self { scratch, task }
    }

    /// What to set KUBECONFIG to.
    pub fn kubeconfig(&self) -> PathBuf {
        self.scratch.path().join("kubeconfig")
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(client: TcpStream, server: TcpStream, delay: Duration) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asking = tokio::spawn(async move { copy(&mut from_client, &mut to_server).await });
    let (late, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let reading = tokio::spawn(async move {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
            if late.send((Instant::now() + delay, bytes[..count].to_vec())).await.is_err() {
                break;
            }
        }
    });
    while let Some((at, bytes)) = due.recv().await {
        sleep_until(at).await;
        if to_client.write_all(&bytes).await.is_err() {
            break;
        }
    }
    asking.abort();
    reading.abort();
}
