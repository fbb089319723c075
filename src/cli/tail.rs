//! stub
#[derive(Debug, clap::Args)]
pub(super) struct Args {}
pub(super) fn run(_: &Args) -> super::Exit {
    super::Exit::Internal
}
