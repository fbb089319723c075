//! File of the control socket: its path, its permissions, its removal.
//!
//! The socket is bound at the first candidate path that is writable, with mode 0600. A socket file
//! that no process listens on is replaced. The file is removed at the end, but only if it is still
//! the same file (device and inode).

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Type};

/// Directory of the sidecar in a container.
const FOLDER: &str = "/run/sidestream";

/// 16: as many as the control socket has slots.
const BACKLOG: i32 = 16;

/// Bound socket. Dropping it removes its file.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: the file is removed only if it is still this one.
    file: (u64, u64),
}

/// Returns the candidate paths of the control socket in the order of preference: only the
/// configured path, or `sidestream.sock` in `/run/sidestream`, then `sidestream-<admin port>.sock`
/// in `XDG_RUNTIME_DIR` and in the temporary directory, which several sidecars of a machine share.
#[must_use]
pub fn candidates(configured: Option<&Path>, admin_port: u16) -> Vec<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    candidates_in(configured, admin_port, runtime, &std::env::temp_dir())
}

fn candidates_in(
    configured: Option<&Path>,
    port: u16,
    runtime: Option<PathBuf>,
    temporary: &Path,
) -> Vec<PathBuf> {
    if let Some(path) = configured {
        return vec![path.to_owned()];
    }
    let shared = format!("sidestream-{port}.sock");
    let own = Path::new(FOLDER).join("sidestream.sock");
    // Relative paths are ignored (XDG Base Directory Specification, "Basics").
    let runtime = runtime.filter(|folder| folder.is_absolute());
    std::iter::once(own)
        .chain(runtime.map(|folder| folder.join(&shared)))
        .chain(std::iter::once(temporary.join(&shared)))
        .collect()
}

impl Socket {
    /// Binds the first candidate that is writable.
    ///
    /// # Errors
    /// `AddrInUse` if a process listens there; otherwise the reasons for all candidates.
    pub(super) fn open(configured: Option<&Path>, admin_port: u16) -> io::Result<Self> {
        let mut errors = Vec::new();
        for path in candidates(configured, admin_port) {
            match Self::bind(&path) {
                Ok(socket) => return Ok(socket),
                Err(error) if configured.is_some() || error.kind() == io::ErrorKind::AddrInUse => {
                    return Err(io::Error::new(
                        error.kind(),
                        format!("{}: {error}", path.display()),
                    ));
                }
                Err(error) => errors.push(format!("{}: {error}", path.display())),
            }
        }
        Err(io::Error::other(errors.join("; ")))
    }

    fn bind(path: &Path) -> io::Result<Self> {
        remove_stale(path)?;
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        // Before it listens: no connection is possible until then, whatever the umask allows.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        socket.set_nonblocking(true)?;
        socket.listen(BACKLOG)?;
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            listener: socket.into(),
            path: path.to_owned(),
            file: (metadata.dev(), metadata.ino()),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a listener for the current runtime.
    pub(super) fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "cannot remove the control socket");
        }
    }
}

/// Removes a socket that no process listens on. Other files, and sockets with a listener, are
/// errors.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "the file exists and is not a socket",
        ));
    }
    let probe = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The full accept queue of a running process must not block.
    probe.set_nonblocking(true)?;
    match probe.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        _ => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another sidecar listens here; set `admin.control` to another path",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_the_configured_path_or_three_in_order() {
        let among = |configured: Option<&str>, runtime: Option<&str>| {
            let runtime = runtime.map(PathBuf::from);
            candidates_in(
                configured.map(Path::new),
                9090,
                runtime,
                Path::new("/temporary"),
            )
        };
        let own = PathBuf::from("/run/sidestream/sidestream.sock");
        let temporary = PathBuf::from("/temporary/sidestream-9090.sock");
        assert_eq!(
            among(Some("/a/b"), Some("/run/user/1")),
            [PathBuf::from("/a/b")]
        );
        let user = PathBuf::from("/run/user/1/sidestream-9090.sock");
        assert_eq!(
            among(None, Some("/run/user/1")),
            [own.clone(), user, temporary.clone()]
        );
        assert_eq!(
            among(None, Some("relative")),
            [own.clone(), temporary.clone()]
        );
        assert_eq!(among(None, None), [own, temporary]);
    }

    #[test]
    fn socket_is_private_to_its_user_and_its_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let socket = Socket::open(Some(&path), 0).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn socket_of_an_ended_process_is_replaced_and_of_a_running_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let living = Socket::open(Some(&path), 0).unwrap();

        let refused = Socket::open(Some(&path), 0).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        assert!(
            refused.to_string().contains("another sidecar listens here"),
            "{refused}"
        );
        assert!(path.exists());
        drop(living);
    }

    #[test]
    fn other_files_are_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        fs::write(&path, "precious").unwrap();
        Socket::open(Some(&path), 0).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn socket_of_another_process_at_the_same_path_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let ours = Socket::open(Some(&path), 0).unwrap();
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
        drop(other);
    }
}
