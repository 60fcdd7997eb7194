//! Connections: accepted, bounded, and ended in order. SIGTERM or Ctrl-C, seen as `stop`: what runs is finished, what is new is
//! refused, then [`serve`] returns.

use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderValue, Request};
use flashlm_kernels::Exec;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Sleep, interval, sleep};

use crate::body;
use crate::desk::Desk;
use crate::mailbox::Bell;
use crate::metrics::Metrics;
use crate::model::Served;
use crate::openapi;
use crate::routes::{Shared, router};
use crate::uri;
use crate::watch::Watch;

/// Most connections at once; others wait to be accepted.
const CONNECTIONS: usize = 8192;
/// Largest head of a request, in bytes, and how long it may take; also how long a connection may be idle.
const MAX_HEAD: usize = 64 << 10;
const HEAD_TIME: Duration = Duration::from_secs(60);
/// Threads for long bodies, long answers and disks: each keeps memory of its own.
const HELPERS: usize = 4;
/// How long a client may take nothing of what is written to it.
const WRITE_TIME: Duration = Duration::from_secs(60);

/// How to serve.
pub struct Options {
    /// The key that clients must send; none lets everybody ask.
    pub api_key: Option<String>,
    /// Texts that are written together, at most.
    pub parallel: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// Tokens of prompts that are read between two tokens of the texts.
    pub prompt_tokens_per_tick: usize,
    /// The origin whose pages may ask.
    pub cors: Option<String>,
    /// Runs to watch, if any.
    pub runs: Option<Arc<dyn Watch>>,
}

/// Why the server ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be used.
    #[error("cannot serve: {0}")]
    Io(#[from] std::io::Error),
    /// The origin can stand in no header.
    #[error("--cors {0}: expected an origin such as https://example.com")]
    Origin(String),
    /// The thread of the engine has ended.
    #[error("the engine has stopped; this is a defect of the program")]
    Engine,
}

/// Serves the models, each with its own executor, until `stop` is set; returns once every request that was accepted is answered.
pub fn serve(
    listener: TcpListener,
    served: Vec<Served>,
    execs: Vec<Exec>,
    options: Options,
    stop: Arc<AtomicBool>,
) -> Result<(), ServeError> {
    let loopback = listener.local_addr()?.ip().is_loopback();
    let cors = options.cors.map(|origin| {
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        let good = !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']);
        HeaderValue::from_str(&origin).ok().filter(|_| good).ok_or(ServeError::Origin(origin))
    });
    let (orders, receiver) = mpsc::unbounded_channel();
    let (served, metrics) = (Arc::new(served), Arc::new(Metrics::new()));
    let bell = Arc::new(Bell::new());
    let limits = (options.parallel, options.prompt_tokens_per_tick);
    let desk = Desk::new(&served, execs, receiver, metrics.clone(), bell.clone(), limits);
    let engine = thread::spawn(move || desk.run());
    let shared = Arc::new(Shared {
        openapi: openapi::describe(&served),
        served,
        metrics,
        orders,
        bell,
        queue: Arc::new(Semaphore::new(options.queue)),
        room: body::room(),
        key: options.api_key,
        runs: options.runs,
        cors: cors.transpose()?,
        loopback,
        draining: AtomicBool::new(false),
        next: AtomicU64::new(0),
        started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
    });
    listener.set_nonblocking(true)?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().max_blocking_threads(HELPERS).build()?;
    runtime.block_on(accept(listener, shared, stop, || engine.is_finished()))
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    broken: impl Fn() -> bool,
) -> Result<(), ServeError> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let bell = shared.bell.clone();
    tokio::spawn(async move { bell.answer().await });
    let router = TowerToHyperService::new(router(shared.clone()));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(MAX_HEAD);
    let (graceful, room) = (GracefulShutdown::new(), Arc::new(Semaphore::new(CONNECTIONS)));
    let mut look = interval(Duration::from_millis(20));
    let begin = async |watch: Option<&GracefulShutdown>| {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _)) => {
                let _ = socket.set_nodelay(true);
                let router = router.clone();
                let service = service_fn(move |mut request: Request<Incoming>| {
                    uri::tidy(request.uri_mut());
                    router.call(request)
                });
                let connection =
                    http.serve_connection(TokioIo::new(Patient { socket, late: None, patience: WRITE_TIME }), service);
                match watch {
                    Some(watch) => {
                        let connection = watch.watch(connection);
                        tokio::spawn(async move { (connection.await, permit).0 });
                    }
                    None => drop(tokio::spawn(async move { (connection.await, permit).0 })),
                }
            }
            // Too many open files, for one: it passes.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    };
    while !stop.load(Relaxed) {
        tokio::select! {
            () = begin(Some(&graceful)) => {}
            _ = look.tick() => {}
        }
        if broken() {
            return Err(ServeError::Engine);
        }
    }
    shared.draining.store(true, Relaxed);
    let mut ended = std::pin::pin!(graceful.shutdown());
    loop {
        tokio::select! {
            () = &mut ended => return Ok(()),
            () = begin(None) => {}
        }
    }
}

/// A socket that fails where its client reads nothing for so long: it would hold its connection, and the end of the server.
struct Patient {
    socket: TcpStream,
    patience: Duration,
    late: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        if written.is_ready() {
            self.late = None;
            return written;
        }
        let patience = self.patience;
        let late = self.late.get_or_insert_with(|| Box::pin(sleep(patience)));
        late.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::Instant;

    #[test]
    fn a_client_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let patience = Duration::from_secs(2);
        for slow in [true, false] {
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (socket, _) = listener.accept().unwrap();
            socket.set_nonblocking(true).unwrap();
            let started = Instant::now();
            // A piece now and then, for longer than the patience with one that takes nothing.
            let reader = thread::spawn(move || {
                let (mut client, mut piece) = (client, vec![0; 4 << 20]);
                while started.elapsed() < 4 * patience {
                    if slow && client.read(&mut piece).is_err() {
                        break;
                    }
                    thread::sleep(patience / 10);
                }
            });
            let end = runtime.block_on(async {
                let socket = TcpStream::from_std(socket).unwrap();
                let mut patient = Patient { socket, patience, late: None };
                let bytes = vec![0; 1 << 20];
                loop {
                    match std::future::poll_fn(|cx| Pin::new(&mut patient).poll_write(cx, &bytes)).await {
                        Ok(_) if started.elapsed() > 3 * patience => return None,
                        Ok(_) => {}
                        Err(error) => return Some(error.kind()),
                    }
                }
            });
            assert_eq!(end, (!slow).then_some(io::ErrorKind::TimedOut));
            assert!(started.elapsed() >= patience);
            reader.join().unwrap();
        }
    }
}
