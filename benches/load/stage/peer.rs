//! Other servers, measured for comparison if they are installed.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::child::Child;
use crate::Fallible;

/// Starts nginx with nchan, which keeps `kept` events of each subject.
///
/// Clients request `/sub` and the path, publishers post to `/pub` and the path.
pub(super) async fn nchan(
    core: Option<usize>,
    kept: u64,
) -> Fallible<(SocketAddr, Child, TempDir)> {
    let module = nchan_module()
        .ok_or("nginx has no nchan module: install it with `scripts/tools.sh bench`")?;
    let folder = TempDir::with_prefix("load-nchan-")?;
    // nginx does not report a port that it chooses itself: use one that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let file = folder.path().join("nginx.conf");
    std::fs::write(
        &file,
        nchan_configuration(folder.path(), module, address, kept),
    )?;
    let mut child = Child::start("nchan", nginx(folder.path(), &file), core, folder.path())?;
    child
        .wait_for("port of nchan", || {
            std::net::TcpStream::connect(address).ok()
        })
        .await?;
    Ok((address, child, folder))
}

/// Starts nginx as a proxy of `application`, at addresses for HTTP/1.1 and HTTP/2.
pub(super) async fn nginx_proxy(
    core: Option<usize>,
    addresses: [SocketAddr; 2],
    application: SocketAddr,
) -> Fallible<(Child, TempDir)> {
    let folder = TempDir::with_prefix("load-nginx-")?;
    let file = folder.path().join("nginx.conf");
    std::fs::write(
        &file,
        proxy_configuration(folder.path(), addresses, application),
    )?;
    let mut child = Child::start("nginx", nginx(folder.path(), &file), core, folder.path())?;
    child
        .wait_for("port of nginx", || {
            std::net::TcpStream::connect(addresses[0]).ok()
        })
        .await?;
    Ok((child, folder))
}

fn nginx(folder: &Path, configuration: &Path) -> Command {
    let mut command = Command::new("nginx");
    command
        .arg("-p")
        .arg(folder)
        .arg("-e")
        .arg("stderr")
        .arg("-c")
        .arg(configuration);
    command
}

/// Starts the Node server in `peers/`.
pub(super) async fn node(
    core: Option<usize>,
    nats: &str,
) -> Fallible<(SocketAddr, Child, TempDir)> {
    let server = node_server().ok_or(
        "the packages of the Node server are missing: install them with `scripts/tools.sh bench`",
    )?;
    let folder = TempDir::with_prefix("load-node-")?;
    let mut command = Command::new("node");
    command.arg(server).arg(nats);
    let mut child = Child::start("node", command, core, folder.path())?;
    let address = child.address("listening").await?;
    Ok((address, child, folder))
}

/// Returns the path of the nchan module, if it is installed.
pub(super) fn nchan_module() -> Option<&'static Path> {
    MODULES.iter().map(Path::new).find(|path| path.exists())
}

/// Returns the path of the Node server, if its packages are installed.
pub(super) fn node_server() -> Option<PathBuf> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/load/peers");
    home.join("node_modules/nats")
        .exists()
        .then(|| home.join("server.mjs"))
}

/// Returns the configuration: one process, because one core is measured and its pid must be known.
fn nchan_configuration(folder: &Path, module: &Path, address: SocketAddr, kept: u64) -> String {
    format!(
        "load_module {module};
daemon off;
master_process off;
pid {folder}/nginx.pid;
events {{ worker_connections 65536; multi_accept on; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  nchan_shared_memory_size 1024M;
  server {{
    listen {address} backlog=4096;
    location ~ ^/sub(/.*)$ {{
      nchan_subscriber eventsource;
      nchan_channel_id $1;
      nchan_subscriber_first_message newest;
    }}
    location ~ ^/pub(/.*)$ {{
      nchan_publisher http;
      nchan_channel_id $1;
      nchan_message_buffer_length {kept};
      nchan_message_timeout 10m;
    }}
  }}
}}
",
        module = module.display(),
        folder = folder.display(),
    )
}

/// Returns the configuration of a proxy that does the same work as the sidecar: one process without
/// a log of requests, connections that stay, bodies in memory, fields for the application, and a cache
/// of the paths that the application marks cacheable.
fn proxy_configuration(
    folder: &Path,
    [http1, http2]: [SocketAddr; 2],
    application: SocketAddr,
) -> String {
    format!(
        "daemon off;
master_process off;
pid {folder}/nginx.pid;
events {{ worker_connections 4096; multi_accept on; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  tcp_nodelay on;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  http2_max_concurrent_streams 256;
  client_body_buffer_size 64k;
  proxy_buffers 16 16k;
  proxy_max_temp_file_size 0;
  proxy_cache_path {folder}/cache keys_zone=responses:1m use_temp_path=off;
  upstream application {{
    server {application};
    keepalive 256;
    keepalive_requests 1000000000;
  }}
  server {{
    listen {http1} backlog=4096;
    listen {http2} http2 backlog=4096;
    location /cached/ {{
      proxy_pass http://application;
      proxy_cache responses;
      proxy_cache_lock on;
      add_header Cache-Status $upstream_cache_status;
      add_header Via \"1.1 nginx\";
    }}
    location / {{
      proxy_pass http://application;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Request-Id $request_id;
      proxy_set_header Via \"1.1 nginx\";
    }}
  }}
}}
",
        folder = folder.display(),
    )
}

/// Paths of the module in the packages of Debian and Alpine.
const MODULES: [&str; 2] = [
    "/usr/lib/nginx/modules/ngx_nchan_module.so",
    "/usr/lib/nginx/modules/ngx_nchan.so",
];
