//! Who asks the hub, and how requests leave.

use std::env;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use flashlm_model::io::read_limited;

use super::HubError;
use super::http::{self, Answer, Request};

/// The public hub.
const ENDPOINT: &str = "https://huggingface.co";

/// A client of the hub. Not printable: it has a secret.
pub struct Client {
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// Proof of identity, for datasets that are private or gated.
    pub token: Option<String>,
    /// The folder `hub` of the cache.
    pub cache: PathBuf,
    /// Whether to do without a network.
    pub offline: bool,
    /// What all pauses are multiplied by.
    pub patience: f64,
    agent: ureq::Agent,
    /// Whether the hub has answered.
    pub(super) reached: AtomicBool,
}

impl Client {
    /// The client that the environment describes: `HF_ENDPOINT`, `HF_TOKEN` (else the file `HF_TOKEN_PATH`, else
    /// `HF_HOME/token`), `HF_HUB_CACHE` (else `HF_HOME/hub`), `HF_HUB_OFFLINE`.
    pub fn from_env(offline: bool) -> Result<Client, HubError> {
        let var = |name: &str| env::var(name).ok().map(|text| text.trim().to_string()).filter(|text| !text.is_empty());
        let path = |name: &str| env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        let home = path("HF_HOME").unwrap_or_else(|| {
            let cache = path("XDG_CACHE_HOME");
            cache.unwrap_or_else(|| env::home_dir().unwrap_or_default().join(".cache")).join("huggingface")
        });
        let file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
        let (origin, token) = match var("HF_TOKEN") {
            Some(token) => ("HF_TOKEN".to_string(), Some(token)),
            None => {
                let text =
                    read_limited(&file, 4096).ok().map(|bytes| String::from_utf8_lossy(&bytes).trim().to_string());
                (file.display().to_string(), text.filter(|text| !text.is_empty()))
            }
        };
        if token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(HubError::Token { origin });
        }
        let yes = |text: String| ["1", "ON", "YES", "TRUE"].contains(&text.to_ascii_uppercase().as_str());
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub"));
        let mut client = Client::new(&var("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_string()), cache);
        client.token = token;
        client.offline = offline || var("HF_HUB_OFFLINE").is_some_and(yes);
        Ok(client)
    }

    /// A client of one hub and one cache.
    pub fn new(endpoint: &str, cache: PathBuf) -> Client {
        let endpoint = endpoint.trim_end_matches('/').to_string();
        let (agent, reached) = (http::agent(), AtomicBool::new(false));
        Client { endpoint, token: None, cache, offline: false, patience: 1.0, agent, reached }
    }

    pub(super) fn send(&self, request: Request) -> Answer {
        http::send(&self.agent, request)
    }
}
