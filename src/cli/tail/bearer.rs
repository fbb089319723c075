//! Bearer token that a command of the user prints.

use std::process::Stdio;
use std::time::Duration;

use hyper::header::HeaderValue;
use tokio::process::Command;
use tokio::time::timeout;

use super::request::No;

/// 60 s: a command may ask a person to log in.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs a command with the shell and returns `Bearer` and the token that it prints.
///
/// # Errors
/// A failed command is tried again; an output that is not a token is final.
pub(super) async fn run(command: &str) -> Result<HeaderValue, No> {
    let for_now = |why: String| No::ForNow { why, after: None };
    let output = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::inherit())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output = timeout(COMMAND_TIMEOUT, output)
        .await
        .map_err(|_| for_now("the bearer command does not end".into()))?
        .map_err(|error| for_now(format!("cannot run the bearer command: {error}")))?;
    if !output.status.success() {
        let why = format!("the bearer command failed ({})", output.status);
        return Err(for_now(why));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let token = text.trim();
    let value = HeaderValue::try_from(format!("Bearer {token}"));
    match value {
        Ok(mut value) if !token.is_empty() && !token.contains(char::is_whitespace) => {
            // Hidden from debug output.
            value.set_sensitive(true);
            Ok(value)
        }
        _ => Err(No::ForGood("the bearer command prints no token".into())),
    }
}
