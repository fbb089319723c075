//! Command line options that `sidestream inject` and `sidestream-injector` have in common.

use crate::Defaults;

/// Values that apply where a pod has no annotation.
#[derive(Debug, clap::Args)]
pub struct DefaultArgs {
    /// Image of the sidecar
    #[arg(long, default_value_t = Defaults::default().image)]
    image: String,
    /// ConfigMap with the file `sidecar.yaml`
    #[arg(long, value_name = "NAME", default_value_t = Defaults::default().config_map)]
    config_map: String,
    /// Value of an annotation that a pod does not have, without `sidestream.dev/`; may be repeated
    #[arg(long = "default", value_name = "ANNOTATION=VALUE", value_parser = annotation)]
    annotations: Vec<(String, String)>,
}

impl DefaultArgs {
    /// The defaults.
    ///
    /// # Errors
    /// A message for the user if a value of `--default` is invalid.
    pub fn defaults(&self) -> Result<Defaults, String> {
        let defaults = Defaults {
            image: self.image.clone(),
            config_map: self.config_map.clone(),
            annotations: self.annotations.iter().cloned().collect(),
        };
        match defaults.problems().first() {
            None => Ok(defaults),
            Some(problem) => Err(format!("--default: {problem}")),
        }
    }
}

/// Parses `NAME=VALUE`; the name may have the prefix `sidestream.dev/`.
fn annotation(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text
        .split_once('=')
        .ok_or("expected ANNOTATION=VALUE, such as cpu-limit=1")?;
    let name = name.strip_prefix("sidestream.dev/").unwrap_or(name);
    Ok((name.to_owned(), value.to_owned()))
}
