//! Where the control socket stands in the file system: found, made for this user alone, taken away at the end.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Type};

/// The folder that is the sidecar's own, in a container.
const FOLDER: &str = "/run/sidestream";

/// 16: people and scripts, one at a time.
const BACKLOG: i32 = 16;

/// The bound socket; dropping it removes its file.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: the file is removed only while it is ours.
    file: (u64, u64),
}

/// Where a control socket may be, in the order in which it is looked for: the one that is configured alone, or
/// `sidestream.sock` in `/run/sidestream`, then `sidestream-<admin port>.sock` in `XDG_RUNTIME_DIR` and in the
/// temporary directory, which several sidecars of a machine share.
#[must_use]
pub fn places(configured: Option<&Path>, admin_port: u16) -> Vec<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    places_among(configured, admin_port, runtime, &std::env::temp_dir())
}

fn places_among(
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
    // A relative one is to be ignored (XDG Base Directory Specification, "Basics").
    let runtime = runtime.filter(|folder| folder.is_absolute());
    std::iter::once(own)
        .chain(runtime.map(|folder| folder.join(&shared)))
        .chain(std::iter::once(temporary.join(&shared)))
        .collect()
}

impl Socket {
    /// Binds the first place that can be written.
    ///
    /// # Errors
    /// `AddrInUse` when a living process listens there; otherwise why none of the places would do.
    pub(super) fn open(configured: Option<&Path>, admin_port: u16) -> io::Result<Self> {
        let mut refusals = Vec::new();
        for place in places(configured, admin_port) {
            match Self::bind(&place) {
                Ok(socket) => return Ok(socket),
                Err(error) if configured.is_some() || error.kind() == io::ErrorKind::AddrInUse => {
                    return Err(io::Error::new(
                        error.kind(),
                        format!("{}: {error}", place.display()),
                    ));
                }
                Err(error) => refusals.push(format!("{}: {error}", place.display())),
            }
        }
        Err(io::Error::other(refusals.join("; ")))
    }

    fn bind(path: &Path) -> io::Result<Self> {
        remove_stale(path)?;
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.bind(&SockAddr::unix(path)?)?;
        // Before it listens: until then nobody gets in, whatever the umask left open.
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

    /// A handle for the runtime that it is called on.
    pub(super) fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the control socket stays behind");
        }
    }
}

/// Removes the socket of a process that is gone. What is no socket, or one that is listened at, is left alone.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "is a file that is no socket",
        ));
    }
    let visit = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Or a full queue of a living one would hold us up.
    visit.set_nonblocking(true)?;
    match visit.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        _ => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another sidecar listens here; give this one a path of its own",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_are_the_configured_one_or_three_in_their_order() {
        let among = |configured: Option<&str>, runtime: Option<&str>| {
            let runtime = runtime.map(PathBuf::from);
            places_among(
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
    fn a_socket_is_for_its_user_alone_and_its_file_goes_with_it() {
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
    fn the_socket_of_a_dead_process_is_replaced_and_that_of_a_living_one_is_not() {
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
    fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        fs::write(&path, "precious").unwrap();
        Socket::open(Some(&path), 0).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_socket_that_took_our_place_is_not_removed_with_ours() {
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
