//! `countersign probe`: obtains each vendor's credential to test its configuration.

use std::io;
use std::time::Duration;

use clap::Args;

use super::ConfigFile;
use super::progress::with_progress;
use super::table::{self, Row};
use crate::config::{Auth, Config, Vendor};
use crate::credential::{self, Probed};
use crate::store;

/// Arguments of `countersign probe`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Vendors' names in the configuration; default: all. May include the configuration file
    #[arg(value_name = "VENDOR")]
    pub(super) vendors: Vec<String>,
    #[command(flatten)]
    pub(super) file: ConfigFile,
}

/// A failure of `countersign probe`.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// No vendor has this name.
    #[error("the configuration has no vendor \"{name}\"; it has: {known}")]
    NoVendor {
        /// The name on the command line.
        name: String,
        /// The names of the vendors.
        known: String,
    },
    /// Some credentials could not be obtained; the table has the details.
    #[error(
        "{failed} of {all} credentials could not be obtained; DETAIL shows the vendor's response or \
         the network error: correct its `auth:` or secret, then probe it again by its name"
    )]
    NotObtained {
        /// Number of credentials that could not be obtained.
        failed: usize,
        /// Number of all credentials.
        all: usize,
    },
    /// stdout could not be written.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Probes the vendors with these names, or all of them, in parallel and prints a line for each.
///
/// # Errors
/// [`Error`]; [`Error::NotObtained`] after the table is printed.
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
        let progress = format!("waiting for the credential of {}", vendor.name);
        let outcome = with_progress(&progress, probing).await;
        rows.push(row(
            vendor,
            outcome.unwrap_or_else(|cause| Some(Probed::Failed(cause.to_string()))),
        ));
    }
    table::print(
        ["VENDOR", "AUTH", "RESULT", "EXPIRES IN", "DETAIL"],
        &rows,
        2,
    )?;
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
    let (result, expires_in, detail) = match outcome {
        None => ("none", None, "nothing is injected".to_owned()),
        Some(Probed::Static) => (
            "present",
            None,
            "not tested: a fixed credential is used as configured".to_owned(),
        ),
        Some(Probed::Obtained(left)) => {
            let shared = vendor.auth.as_ref().is_some_and(Auth::is_shared);
            let stored = if shared { ", not stored" } else { "" };
            ("obtained", Some(left), format!("Bearer ***{stored}"))
        }
        Some(Probed::Shared(left)) => (
            "shared",
            Some(left),
            "the stored token of all replicas: no new one was requested, nothing was written"
                .to_owned(),
        ),
        Some(Probed::Consented(left)) => (
            "consented",
            left,
            "not tested: a refresh token works once, so the stored one was not used".to_owned(),
        ),
        Some(Probed::Failed(cause)) => ("FAILED", None, cause),
    };
    let seconds = |left: Duration| Duration::from_secs(left.as_secs());
    let expires_in = expires_in.map_or("-".to_owned(), |left| {
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
            expires_in,
            detail,
        ],
    }
}
