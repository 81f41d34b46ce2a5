//! From when until when a certificate holds, and when to ask for the next one.

use std::time::{Duration, SystemTime};

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{PkiError, tls};

/// The share of its life after which a certificate is renewed at the earliest, and at the latest.
///
/// Source: Kubernetes, kubelet's certificate rotation, which asks between 70 and 90 percent.
const RENEWED_FROM: f64 = 0.7;
const RENEWED_TO: f64 = 0.9;

/// From when until when a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Its beginning.
    pub not_before: SystemTime,
    /// Its end.
    pub not_after: SystemTime,
}

impl Validity {
    /// Reads the first certificate of a chain, PEM.
    ///
    /// # Errors
    /// [`PkiError`] when there is none, or it cannot be read.
    pub fn of_pem(chain_pem: &str) -> Result<Validity, PkiError> {
        let der = &tls::certificates(chain_pem, "certificate")?[0];
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|e| PkiError::Certificate(e.to_string()))?;
        let time = |seconds: i64| match u64::try_from(seconds) {
            Ok(seconds) => SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            Err(_) => SystemTime::UNIX_EPOCH,
        };
        let validity = certificate.validity();
        Ok(Validity {
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        })
    }

    /// Whether it holds no more.
    pub fn is_over(&self, now: SystemTime) -> bool {
        now >= self.not_after
    }

    /// When to renew: `jitter`, from 0 to 1, spreads a fleet over the time that there is.
    pub fn renew_at(&self, jitter: f64) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + life.mul_f64(RENEWED_FROM + (RENEWED_TO - RENEWED_FROM) * jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, Request};

    #[test]
    fn a_certificate_is_renewed_late_in_its_life_and_before_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(folder.path()).unwrap();
        let csr = Request::new().unwrap().csr_der;
        for seconds in [60, 90 * 24 * 60 * 60] {
            let issued = authority.certify_node(&csr, "edge-1", Duration::from_secs(seconds)).unwrap();
            let validity = Validity::of_pem(&issued.chain_pem).unwrap();
            let life = validity.not_after.duration_since(validity.not_before).unwrap();
            assert_eq!(life.as_secs(), seconds + seconds.min(24 * 60 * 60));
            let at =
                |jitter| validity.renew_at(jitter).duration_since(validity.not_before).unwrap().as_secs_f64();
            assert!((at(0.0) / life.as_secs_f64() - 0.7).abs() < 1e-6);
            assert!((at(1.0) / life.as_secs_f64() - 0.9).abs() < 1e-6);
            assert!(!validity.is_over(validity.renew_at(1.0)) && validity.is_over(validity.not_after));
        }
    }
}
