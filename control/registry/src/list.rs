//! Listing a collection, page by page at one revision.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lichen_api::{Resource, Status};
use lichen_store::{Key, RangeError, RangeOptions, Record, Revision};
use serde::{Deserialize, Serialize};

use crate::registry::prefix_of;
use crate::{Filter, List, ListOptions, Registry, RevisionMatch};

/// Records read at once while a selector looks for enough to fill a page.
const CHUNK_RECORDS: usize = 1024;
/// The token's version, Kubernetes' own.
const TOKEN_VERSION: &str = "meta.k8s.io/v1";

/// What a continue token says. The key is relative to the collection's prefix, so that a token never leads out of it.
#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    /// -1 continues from the present state.
    rv: i64,
    start: String,
}

impl Token {
    fn parse(text: &str) -> Result<Self, Status> {
        let bad = |why: &str| {
            Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
        };
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| bad("no base64"))?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|_| bad("no token of this server"))?;
        match (token.v.as_str(), token.rv) {
            (TOKEN_VERSION, 1.. | -1) => Ok(token),
            (TOKEN_VERSION, _) => Err(bad("incorrect encoded start resourceVersion")),
            _ => Err(bad("server does not recognize this encoded version")),
        }
    }

    fn encode(revision: i64, start: &str) -> String {
        let token = Self { v: TOKEN_VERSION.to_owned(), rv: revision, start: start.to_owned() };
        let json = serde_json::to_vec(&token).unwrap_or_default();
        URL_SAFE_NO_PAD.encode(json)
    }
}

impl Registry {
    /// Lists a kind in one namespace or in all.
    pub async fn list(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<List, Status> {
        let filter = options.filter.of_home(resource)?;
        match options.revision {
            RevisionMatch::Newest => self.barrier().await?,
            RevisionMatch::NotOlderThan(asked) | RevisionMatch::Exact(asked) => self.reach(asked).await?,
        }
        let prefix = prefix_of(resource, namespace);
        let mut range = RangeOptions::default();
        if let RevisionMatch::Exact(revision) = options.revision {
            range.at = Some(revision);
        }
        let mut after = None;
        if let Some(text) = &options.continue_token {
            let token = Token::parse(text)?;
            range.at = u64::try_from(token.rv).ok().map(Revision);
            range.after = Some(Key::new(format!("{prefix}{}", token.start)));
            after = Some(token.start);
        }
        self.collect(&prefix, range, &filter, options.limit)
            .map_err(|error| expired(&error, after.as_deref()))
    }

    fn collect(
        &self,
        prefix: &str,
        mut range: RangeOptions,
        filter: &Filter,
        limit: Option<usize>,
    ) -> Result<List, RangeError> {
        let everything = filter.is_everything();
        let most = limit.unwrap_or(usize::MAX);
        let mut items: Vec<Record> = Vec::new();
        loop {
            range.limit = match limit {
                None => None,
                Some(limit) if everything => Some(limit - items.len()),
                Some(_) => Some(CHUNK_RECORDS),
            };
            let page = self.inner.store.range(prefix, &range)?;
            range.at = Some(page.revision);
            let mut more = page.more;
            let mut left = page.items.into_iter();
            for (key, record) in left.by_ref() {
                range.after = Some(key);
                if everything || filter.matches(&record) {
                    items.push(record);
                    if items.len() >= most {
                        break;
                    }
                }
            }
            more |= left.next().is_some();
            if !more {
                return Ok(List { revision: page.revision, items, continue_token: None, remaining: None });
            }
            if items.len() >= most {
                let start = range
                    .after
                    .as_ref()
                    .and_then(|key| key.as_str().strip_prefix(prefix))
                    .unwrap_or_default();
                let revision = i64::try_from(page.revision.0).unwrap_or(i64::MAX);
                let token = Token::encode(revision, start);
                let remaining = everything.then(|| self.count(prefix, &range)).transpose()?;
                return Ok(List { revision: page.revision, items, continue_token: Some(token), remaining });
            }
        }
    }

    fn count(&self, prefix: &str, range: &RangeOptions) -> Result<u64, RangeError> {
        let rest = self.inner.store.range(prefix, &RangeOptions { limit: None, ..range.clone() })?;
        Ok(rest.items.len() as u64)
    }
}

fn expired(error: &RangeError, continued: Option<&str>) -> Status {
    match (error, continued) {
        (RangeError::Compacted { .. }, Some(start)) => Status::continue_expired(&Token::encode(-1, start)),
        (RangeError::Compacted { .. }, None) => {
            Status::expired("The resourceVersion for the provided list is too old.")
        }
        (RangeError::Future { wanted, newest }, _) => Status::future_revision(wanted.0, newest.0),
    }
}
