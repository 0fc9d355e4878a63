//! `countersign probe`: does each vendor's login work, tried for real?

use std::io;
use std::time::Duration;

use clap::Args;

use super::table::{self, Row};
use super::{ConfigFile, progress};
use crate::config::{Auth, Config, Vendor};
use crate::credential::{self, Probed};
use crate::store;

/// What to try.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Vendors' names in the configuration; default: all. The configuration file may stand among
    /// them
    #[arg(value_name = "VENDOR")]
    pub(super) vendors: Vec<String>,
    #[command(flatten)]
    pub(super) file: ConfigFile,
}

/// Why nothing was tried, or not everything succeeded.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No such vendor.
    #[error("there is no vendor \"{name}\" in the configuration; there are: {known}")]
    NoVendor {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The table says which.
    #[error(
        "{failed} of {all} credentials could not be obtained; DETAIL says what the vendor or the \
         network answered: correct its `auth:` or secret, then probe it again by its name"
    )]
    NotObtained {
        /// How many.
        failed: usize,
        /// Out of.
        all: usize,
    },
    /// The terminal went away.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Tries the vendors of these names, or all, at once and prints a line each.
///
/// # Errors
/// [`Error`], after the table when it is about credentials.
pub(super) async fn run(config: &Config, names: &[String]) -> Result<(), Error> {
    let vendors = chosen(config, names)?;
    let store = store::open(&config.store);
    let probing: Vec<_> = vendors
        .iter()
        .map(|vendor| {
            let (vendor, store) = (Vendor::clone(vendor), store.clone());
            tokio::spawn(async move { credential::probe(&vendor, &store).await })
        })
        .collect();
    let mut rows = Vec::new();
    for (vendor, probing) in vendors.into_iter().zip(probing) {
        let waiting = format!("waiting for the credential of {}", vendor.name);
        let outcome = progress::shown(&waiting, probing).await;
        rows.push(row(
            vendor,
            outcome.unwrap_or_else(|cause| Some(Probed::Failed(cause.to_string()))),
        ));
    }
    table::print(["VENDOR", "AUTH", "RESULT", "GOOD FOR", "DETAIL"], &rows, 2)?;
    let failed = rows.iter().filter(|row| !row.good).count();
    if failed > 0 {
        let all = rows.len();
        return Err(Error::NotObtained { failed, all });
    }
    Ok(())
}

fn chosen<'a>(config: &'a Config, names: &[String]) -> Result<Vec<&'a Vendor>, Error> {
    if names.is_empty() {
        return Ok(config.vendors.iter().collect());
    }
    let find = |name: &String| {
        let mut vendors = config.vendors.iter();
        vendors.find(|vendor| vendor.name == *name).ok_or_else(|| {
            let known: Vec<_> = config.vendors.iter().map(|v| v.name.as_str()).collect();
            Error::NoVendor {
                name: name.clone(),
                known: known.join(", "),
            }
        })
    };
    names.iter().map(find).collect()
}

fn row(vendor: &Vendor, outcome: Option<Probed>) -> Row<5> {
    let (result, good_for, detail) = match outcome {
        None => ("none", None, "nothing is injected".to_owned()),
        Some(Probed::Static) => ("there", None, "used as it is written: not tried".to_owned()),
        Some(Probed::Obtained(left)) => {
            let shared = vendor.auth.as_ref().is_some_and(Auth::is_shared);
            let stored = if shared { ", not stored" } else { "" };
            ("obtained", Some(left), format!("Bearer ***{stored}"))
        }
        Some(Probed::Shared(left)) => (
            "shared",
            Some(left),
            "the stored token of all replicas: no other was asked for, and nothing was written"
                .to_owned(),
        ),
        Some(Probed::Consented(left)) => (
            "consented",
            left,
            "a refresh token works once: the stored one was not tried".to_owned(),
        ),
        Some(Probed::Failed(cause)) => ("FAILED", None, cause),
    };
    let seconds = |left: Duration| Duration::from_secs(left.as_secs());
    let good_for = good_for.map_or("-".to_owned(), |left| {
        humantime::format_duration(seconds(left)).to_string()
    });
    Row {
        good: result != "FAILED",
        cells: [
            vendor.name.clone(),
            vendor
                .auth
                .as_ref()
                .map_or("none", |auth| auth.kind().name)
                .to_owned(),
            result.to_owned(),
            good_for,
            detail,
        ],
    }
}
