//! Tunnel of a WebSocket: bytes in both directions after the application's 101.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};

use super::response_body::InProgress;

/// Connection of the application that waits for the socket of its client.
pub(in crate::http) struct Tunnel {
    application: OnUpgrade,
    _in_progress: InProgress,
}

impl Tunnel {
    pub(super) fn new(application: OnUpgrade, in_progress: InProgress) -> Self {
        Self {
            application,
            _in_progress: in_progress,
        }
    }

    /// Copies bytes until both sides have ended. `early`: bytes of the client that were read with
    /// its request.
    pub(in crate::http) async fn run(
        self,
        mut client: impl AsyncRead + AsyncWrite + Unpin,
        early: &[u8],
    ) {
        let copied = async {
            let upgraded = self.application.await.map_err(std::io::Error::other)?;
            let mut application = TokioIo::new(upgraded);
            application.write_all(early).await?;
            copy_bidirectional(&mut client, &mut application).await
        };
        if let Err(error) = copied.await {
            tracing::debug!(%error, "tunnel to the application ended");
        }
    }
}
