//! When to try again, and when to give up: after the last progress there are five more attempts, the pauses between them
//! growing, or as long as the hub asks for; a hub that has never answered is given up within seconds.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::address::Address;
use super::http::{Fault, Head, TICK};
use super::watch::Watch;
use super::{Client, HubError};
use crate::units;

/// Pauses before further attempts, in milliseconds; progress begins the row anew.
const PAUSES: [u64; 5] = [50, 500, 1000, 2000, 4000];
/// How long to insist on a hub that has never answered.
const INSIST: Duration = Duration::from_secs(3);
/// Longest pause that a server can ask for.
const MAX_PAUSE: Duration = Duration::from_secs(600);

/// Attempts, and the pauses between them.
pub(super) struct Retry<'a> {
    client: &'a Client,
    began: Instant,
    attempt: usize,
}

impl Retry<'_> {
    pub fn new(client: &Client) -> Retry<'_> {
        Retry { client, began: Instant::now(), attempt: 0 }
    }

    /// Waits for the next attempt; an error where there is to be none.
    pub fn wait(&mut self, fault: Fault, url: &str, progress: bool, watch: &mut Watch) -> Result<(), HubError> {
        if progress {
            self.attempt = 0;
        }
        let reached = &self.client.reached;
        reached.fetch_or(progress || matches!(fault, Fault::Status(_) | Fault::Broken(_)), Relaxed);
        let mut pause = PAUSES.get(self.attempt).map(|ms| Duration::from_millis(*ms).mul_f64(self.client.patience));
        self.attempt += 1;
        let cause = match fault {
            Fault::Stopped => return Err(HubError::Stopped),
            Fault::Refused(reason) => return Err(HubError::Answer { url: url.to_string(), reason }),
            Fault::Unreachable(cause) => {
                let give_up = !reached.load(Relaxed) && (self.attempt > 2 || self.began.elapsed() > INSIST);
                if give_up || pause.is_none() {
                    let (address, endpoint) = (&watch.address, self.client.endpoint.clone());
                    let (repo, instead) = (address.repo.clone(), address.instead());
                    return Err(HubError::Unreachable { repo, endpoint, cause, instead });
                }
                cause
            }
            Fault::Broken(cause) => cause,
            Fault::Status(head) => {
                let passing = matches!(head.status, 408 | 429 | 500 | 502 | 503 | 504);
                let asked = head.retry_after.filter(|_| passing);
                if !passing || asked.is_some_and(|asked| asked > MAX_PAUSE) {
                    return Err(self.refused(*head, url, &watch.address));
                }
                pause = pause.map(|pause| asked.unwrap_or_default().max(pause));
                format!("the hub answers {}", describe(&head))
            }
        };
        let Some(pause) = pause else { return Err(HubError::Broken { url: url.to_string(), cause }) };
        let until = Instant::now() + pause;
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let text = format!("{cause}; trying again in {}", units::duration(left.as_secs_f64().ceil()));
            if watch.tell(Some(&text)).is_break() {
                return Err(HubError::Stopped);
            }
            std::thread::sleep(left.min(TICK));
        }
        Ok(())
    }

    fn refused(&self, head: Head, url: &str, address: &Address) -> HubError {
        let (repo, noun, page) = (&address.repo, address.noun(), address.page(&self.client.endpoint));
        let why = match (head.status, &self.client.token) {
            (401, None) => format!("there is no such {noun}, or it is not public; check the name, or set HF_TOKEN"),
            (401, Some(_)) => format!("it does not accept your token; check the name of the {noun} and HF_TOKEN"),
            (403, None) => format!("the {noun} is gated; accept its terms at {page} and set HF_TOKEN"),
            (403, Some(_)) => {
                format!("the {noun} is gated and your token does not open it; accept its terms at {page}")
            }
            (404 | 410, _) => format!("there is no such {noun} or file; check the name"),
            (429, _) => "too many requests; try later, or set HF_TOKEN".to_string(),
            _ => "it is not available now; try later".to_string(),
        };
        let message = if head.message.is_empty() { String::new() } else { format!(" ({})", head.message) };
        HubError::Refused { repo: repo.to_string(), url: url.to_string(), status: head.status, message, why }
    }
}

fn describe(head: &Head) -> String {
    let about = match head.status {
        429 => " (too many requests)",
        500 => " (a server error)",
        503 => " (not available now)",
        _ => "",
    };
    format!("{}{about}", head.status)
}
