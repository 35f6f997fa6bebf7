//! What of a file, or of a key of a Kubernetes Secret, is the secret.

/// The secret in a text: one line end at the end is not part of it.
///
/// # Errors
///
/// What is wrong with it and what to do, as the end of a sentence that names the place; nothing of the text.
pub fn in_text(text: &str) -> Result<&str, &'static str> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        Err("is empty: write the secret into it")
    } else if text.contains('\0') {
        Err("holds a byte 0, which no client can send: write it as plain text")
    } else if text.starts_with(|first: char| first.is_ascii_whitespace()) {
        // librdkafka drops it from settings, and keeps it in what a living client is given.
        Err("begins with a blank, which clients drop: take it away")
    } else {
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_ends_before_the_line_end() {
        for (text, secret) in [("a b \r\n", "a b "), ("a\n\n", "a\n"), ("a", "a")] {
            assert_eq!(in_text(text), Ok(secret));
        }
    }

    #[test]
    fn a_secret_that_would_not_arrive_as_it_is_written_is_refused() {
        for (bad, says) in
            [("", "is empty"), ("\r\n", "is empty"), ("hun\0ter2", "byte 0"), (" hunter2", "begins with")]
        {
            assert!(in_text(bad).unwrap_err().contains(says), "{bad:?}");
        }
    }
}
