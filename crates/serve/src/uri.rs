//! What an address says besides its route: slashes too many, the model in a path, values after the question mark.

use axum::http::Uri;

use crate::error::ApiError;

/// Clients put together what they were given, `/v1/` and `/completions`: slashes that are doubled or at the end mean nothing. Those that
/// cannot name a model with all they ask, as lm-eval with its tokenizer, have it in the path: `/models/NAME/tokenize` is
/// `/tokenize?model=NAME`.
pub fn tidy(uri: &mut Uri) {
    let path = uri.path();
    if path.len() < 2 || !(path.contains("//") || path.ends_with('/') || path.starts_with("/models/")) {
        return;
    }
    let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let mut values: Vec<String> = uri.query().map(String::from).into_iter().collect();
    if parts.len() > 2 && parts[0] == "models" {
        values.push(format!("model={}", parts[1].replace('&', "%26").replace('+', "%2B")));
        parts.drain(..2);
    }
    let query = if values.is_empty() { String::new() } else { format!("?{}", values.join("&")) };
    if let Ok(tidied) = format!("/{}{query}", parts.join("/")).parse() {
        *uri = tidied;
    }
}

/// The last value of a key after the question mark.
pub fn value(uri: &Uri, key: &'static str) -> Result<Option<String>, ApiError> {
    let mut all = uri.query().unwrap_or_default().split('&').filter_map(|part| part.split_once('='));
    let Some((_, value)) = all.rfind(|(name, _)| *name == key) else { return Ok(None) };
    let (mut bytes, mut rest) = (Vec::new(), value.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        let code = after.first_chunk::<2>().filter(|_| first == b'%').and_then(|digits| {
            let digits =
                std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
            u8::from_str_radix(digits?, 16).ok()
        });
        bytes.push(code.unwrap_or(if first == b'+' { b' ' } else { first }));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    let text = String::from_utf8(bytes).ok();
    text.map(Some).ok_or_else(|| ApiError::bad(key, format!("{key}: the value in the address is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_too_many_are_left_out_and_a_model_in_the_path_is_a_value() {
        for (given, meant) in [
            ("/", "/"),
            ("//", "/"),
            ("/v1/models/", "/v1/models"),
            ("//v1//completions//?a=//b/", "/v1/completions?a=//b/"),
            ("http://localhost:80/health/", "/health"),
            ("/runs/a%2F?after=1", "/runs/a%2F?after=1"),
            ("*", "*"),
            ("/models/a/tokenize", "/tokenize?model=a"),
            ("//models/a%20+&=b//v1/completions/?c=1", "/v1/completions?c=1&model=a%20%2B%26=b"),
            ("/models/a", "/models/a"),
            ("/models/", "/models"),
            ("/v1/models/a/b", "/v1/models/a/b"),
        ] {
            let mut uri: Uri = given.parse().unwrap();
            tidy(&mut uri);
            assert_eq!(uri.to_string(), meant);
        }
    }

    #[test]
    fn values_are_decoded() {
        for (given, meant) in [
            ("/a", None),
            ("/a?model", None),
            ("/a?models=b", None),
            ("/a?model=", Some("")),
            ("/a?model=b&x=1&model=c", Some("c")),
            ("/a?model=%C3%a9+%2B%26=d", Some("\u{e9} +&=d")),
            ("/a?model=%zz%2%+1%", Some("%zz%2% 1%")),
        ] {
            let found = value(&given.parse().unwrap(), "model").map_err(|error| error.json());
            assert_eq!(found.unwrap().as_deref(), meant, "{given}");
        }
        assert!(value(&"/a?model=%ff".parse().unwrap(), "model").is_err());
    }
}
