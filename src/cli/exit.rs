//! Exit codes of all commands.

/// Exit code of a command, for shells, supervisors and Kubernetes. The numbers come from
/// `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    /// Success.
    Clean = 0,
    /// Invalid usage or configuration: another attempt gives the same result.
    Usage = 64,
    /// The check has a finding: the compared schemas are not backward compatible, or the proxies
    /// between have faults.
    Finding = 65,
    /// A required service is unreachable or rejects the request.
    Unavailable = 69,
    /// Internal error.
    Internal = 70,
    /// The drain did not complete.
    Incomplete = 75,
}

/// Explanation of the codes, printed by `--help`.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0   success
  64  invalid usage or configuration
  65  the check has a finding: incompatible schemas, or faults of the proxies
  69  a required service is unavailable or rejects the request
  70  internal error
  75  the drain did not complete";
