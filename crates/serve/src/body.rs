//! The body of a request: JSON, at most [`MAX_BODY`] bytes in [`BODY_TIME`]. Of all long ones together at most [`ROOM`] bytes are held,
//! each from its first byte until its request is answered.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::error::ApiError;

/// Largest body of a request, in bytes.
const MAX_BODY: usize = 16 << 20;
/// As much of a larger one is read before it is refused, so that its client hears the answer.
const MAX_DRAINED: usize = 256 << 20;
/// From this many bytes on a body is long: it takes of the room, and is worked on by another thread.
const LONG: usize = 64 << 10;
/// Bytes of all long bodies.
const ROOM: usize = 256 << 20;
/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Room for long bodies, in KiB.
pub fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ROOM >> 10))
}

/// What so many bytes take of it.
fn places(bytes: usize) -> usize {
    (bytes >> 10) + 1
}

/// A body that has arrived.
pub struct Whole {
    pub bytes: Vec<u8>,
    /// What it takes of the room, while it is kept.
    pub place: Option<OwnedSemaphorePermit>,
}

impl Whole {
    pub fn is_long(&self) -> bool {
        self.place.is_some()
    }
}

pub async fn read(request: Request, room: &Arc<Semaphore>) -> Result<Whole, ApiError> {
    let headers = request.headers();
    // Pages of other sites can send forms and plain text without asking first, but not this.
    let kind = text(headers, header::CONTENT_TYPE).split(';').next().unwrap_or_default();
    let refused = |message| Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, None, message));
    if !kind.trim().eq_ignore_ascii_case("application/json") {
        return refused("the body must be JSON, with the header `Content-Type: application/json`".to_string());
    }
    let coding = text(headers, header::CONTENT_ENCODING).trim();
    if !coding.is_empty() && !coding.eq_ignore_ascii_case("identity") {
        let shown: String = coding.chars().take(20).collect();
        return refused(format!("the body is encoded as {shown}; send it as it is, without Content-Encoding"));
    }
    let length = text(headers, header::CONTENT_LENGTH).parse::<usize>().ok();
    let large = || {
        let message = format!("the body is larger than {MAX_BODY} bytes; send less at once");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, None, message)
    };
    let too_long = length.is_some_and(|length| length > MAX_BODY);
    if too_long && headers.contains_key(header::EXPECT) {
        // It has not been sent yet.
        return Err(large());
    }
    let take = |bytes: usize| {
        let place = room.clone().try_acquire_many_owned(places(bytes) as u32);
        let full = "other large requests take all the room there is; ask again in a second";
        place.map(Some).map_err(|_| ApiError::new(StatusCode::TOO_MANY_REQUESTS, Some("no_room"), full))
    };
    let work = async {
        let mut place = match length {
            Some(length) if length > LONG && !too_long => take(length)?,
            _ => None,
        };
        let (mut bytes, mut len) = (Vec::with_capacity(length.filter(|_| !too_long).unwrap_or(0)), 0);
        let mut pieces = request.into_body().into_data_stream();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| ApiError::bad("body", format!("the body ended early: {error}")))?;
            len += piece.len();
            if len > MAX_DRAINED {
                break;
            }
            if too_long || len > MAX_BODY {
                bytes = Vec::new();
                continue;
            }
            if len > LONG && place.is_none() {
                place = take(MAX_BODY)?;
            }
            bytes.extend_from_slice(&piece);
        }
        // One that did not say its length has taken the most.
        if let Some(place) = &mut place {
            drop(place.split(place.num_permits().saturating_sub(places(bytes.len()))));
        }
        if too_long || len > MAX_BODY { Err(large()) } else { Ok(Whole { bytes, place }) }
    };
    let late = || ApiError::new(StatusCode::REQUEST_TIMEOUT, None, "the body took longer than 30 seconds to arrive");
    timeout(BODY_TIME, work).await.map_err(|_| late())?
}

fn text(headers: &HeaderMap, name: HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    #[test]
    fn a_body_holds_as_much_room_as_it_has_bytes() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let room = room();
        let whole = room.available_permits();
        for (bytes, said, taken) in
            [(1000, false, 0), (100 << 10, false, 101), (100 << 10, true, 101), (16 << 20, false, (16 << 10) + 1)]
        {
            let mut request = Request::new(Body::from(vec![b' '; bytes]));
            request.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
            if said {
                request.headers_mut().insert(header::CONTENT_LENGTH, bytes.into());
            }
            let read = runtime.block_on(read(request, &room)).map_err(|error| error.json()).unwrap();
            assert_eq!((read.bytes.len(), whole - room.available_permits()), (bytes, taken));
            drop(read);
            assert_eq!(room.available_permits(), whole);
        }
    }
}
