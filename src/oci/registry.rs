//! The registry's API: manifests, blobs, referrers, uploads. Reading goes to the mirrors in order, then to the
//! registry itself; what a digest names is compared with it per place, so a mirror that is wrong is passed over.

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, Url};
use sha2::{Digest as _, Sha256};

use crate::core::digest::Digest;
use crate::oci::access::{Access, Endpoint};
use crate::oci::body::BodySink;
use crate::oci::config::OciConfig;
use crate::oci::digest_of;
use crate::oci::error::OciError;
use crate::oci::manifest::{ACCEPT, Descriptor, Document, INDEX};
use crate::oci::reference::Reference;
use crate::oci::token::Action;
use crate::oci::transport::{Call, Transport};

/// The largest manifest, in bytes: what registries take too.
pub(super) const MAX_MANIFEST_BYTES: u64 = 4 << 20;

/// A manifest as it came.
#[derive(Debug, Clone)]
pub(super) struct FetchedManifest {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
    pub(super) document: Document,
}

pub(super) struct Registry {
    transport: Transport,
}

impl Registry {
    pub(super) fn new(config: &OciConfig) -> Result<Self, OciError> {
        Ok(Self { transport: Transport::new(config)? })
    }

    /// The manifest or index that a reference names.
    pub(super) fn manifest(&self, image: &Reference) -> Result<FetchedManifest, OciError> {
        let wanted = image.wanted();
        let what = format!("manifest {}:{wanted}", image.repository());
        self.anywhere(image, |at| {
            let limits = self.transport.limits();
            let rest = format!("manifests/{wanted}");
            let mut call = Call::get(at, &rest, &what, MAX_MANIFEST_BYTES, limits.manifest_total);
            call.accept = Some(ACCEPT);
            let mut bytes = Vec::new();
            let headers = self.transport.run(&call, &mut bytes)?;
            let found = digest_of(&bytes);
            for wanted in image.digest().into_iter().chain(digest_header(&headers)) {
                if wanted != found {
                    return Err(OciError::WrongDigest { what: what.clone(), wanted, found });
                }
            }
            let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let document = Document::read(&bytes, content_type)
                .map_err(|reason| OciError::NotAModule { image: image.to_string(), reason })?;
            Ok(FetchedManifest { bytes, digest: found, document })
        })
    }

    /// Writes a blob of a module's size to the sink; its bytes have the digest when this succeeds.
    pub(super) fn blob(
        &self,
        image: &Reference,
        digest: Digest,
        limit: u64,
        sink: &mut dyn BodySink,
    ) -> Result<(), OciError> {
        let what = format!("blob {digest} of {}", image.repository());
        self.anywhere(image, |at| {
            let total = self.transport.limits().module_total;
            let rest = format!("blobs/{digest}");
            let mut checked = Checked { sink: &mut *sink, hash: Sha256::new() };
            self.transport.run(&Call::get(at, &rest, &what, limit, total), &mut checked)?;
            let found = Digest::from_bytes(checked.hash.finalize().into());
            if found == digest {
                return Ok(());
            }
            Err(OciError::WrongDigest { what: what.clone(), wanted: digest, found })
        })
    }

    /// A small blob, whole.
    pub(super) fn small_blob(
        &self,
        image: &Reference,
        of: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, OciError> {
        if of.size > limit {
            return Err(OciError::TooLarge {
                what: format!("blob {} of {}", of.digest, image.repository()),
                limit,
            });
        }
        let mut bytes = Vec::new();
        self.blob(image, of.digest, of.size, &mut bytes)?;
        Ok(bytes)
    }

    /// What refers to a manifest: by the referrers API, else by the tag that stands in for it.
    pub(super) fn referrers(&self, image: &Reference, to: Digest) -> Result<Vec<Descriptor>, OciError> {
        let what = format!("referrers of {}@{to}", image.repository());
        let answer = self.anywhere(image, |at| {
            let total = self.transport.limits().manifest_total;
            let rest = format!("referrers/{to}");
            let mut call = Call::get(at, &rest, &what, MAX_MANIFEST_BYTES, total);
            call.accept = Some(INDEX);
            let mut bytes = Vec::new();
            self.transport.run(&call, &mut bytes)?;
            Ok(bytes)
        });
        let document = match answer {
            Ok(bytes) => Document::read(&bytes, None).map_err(|reason| OciError::BadAnswer {
                host: image.registry().to_string(),
                what,
                reason,
            })?,
            Err(error) if error.is_not_found() => {
                match self.manifest(&image.with_tag(format!("sha256-{}", to.hex()))) {
                    Ok(fetched) => fetched.document,
                    Err(error) if error.is_not_found() => return Ok(Vec::new()),
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        };
        match document {
            Document::Index(index) => Ok(index.manifests),
            Document::Manifest(_) => Ok(Vec::new()),
        }
    }

    /// Uploads a blob, unless it is there.
    pub(super) fn push_blob(&self, image: &Reference, bytes: &[u8]) -> Result<Digest, OciError> {
        let digest = digest_of(bytes);
        let what = format!("upload of {digest} to {}", image.repository());
        let at = self.transport.access().origin(image);
        let head = self.write(&at, Method::HEAD, at.url(&format!("blobs/{digest}")), None, &what);
        match head {
            Ok(_) => return Ok(digest),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        let headers = self.write(&at, Method::POST, at.url("blobs/uploads/"), Some(("", b"")), &what)?;
        let mut url = upload_url(&at, &headers, &what)?;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        self.write(&at, Method::PUT, url.into(), Some(("application/octet-stream", bytes)), &what)?;
        Ok(digest)
    }

    /// Writes a manifest under the reference's tag, or under its own digest.
    pub(super) fn push_manifest(
        &self,
        image: &Reference,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<(), OciError> {
        let what = format!("manifest {image}");
        let at = self.transport.access().origin(image);
        let name = image.tag().map_or_else(|| digest_of(bytes).to_string(), str::to_owned);
        let url = at.url(&format!("manifests/{name}"));
        self.write(&at, Method::PUT, url, Some((media_type, bytes)), &what)?;
        Ok(())
    }

    fn write(
        &self,
        at: &Endpoint,
        method: Method,
        url: String,
        body: Option<(&str, &[u8])>,
        what: &str,
    ) -> Result<HeaderMap, OciError> {
        let total = self.transport.limits().module_total;
        let (action, limit) = (Action::Push, MAX_MANIFEST_BYTES);
        let call = Call { at, method, url, accept: None, body, action, what, limit, total };
        self.transport.run(&call, &mut Vec::new())
    }

    /// Asks the mirrors in order, then the registry: the first success, or the registry's own failure.
    fn anywhere<T>(
        &self,
        image: &Reference,
        mut ask: impl FnMut(&Endpoint) -> Result<T, OciError>,
    ) -> Result<T, OciError> {
        let endpoints = self.transport.access().endpoints(image);
        let (origin, mirrors) = match endpoints.split_last() {
            Some((origin, mirrors)) => (origin.clone(), mirrors),
            None => (self.transport.access().origin(image), &endpoints[..]),
        };
        for mirror in mirrors {
            match ask(mirror) {
                Ok(answer) => return Ok(answer),
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    tracing::warn!(mirror = mirror.authority, %image, %error, "a mirror failed: trying the next place");
                }
            }
        }
        ask(&origin)
    }
}

struct Checked<'a> {
    sink: &'a mut dyn BodySink,
    hash: Sha256,
}

impl BodySink for Checked<'_> {
    fn restart(&mut self) -> Result<(), OciError> {
        self.hash = Sha256::new();
        self.sink.restart()
    }

    fn write(&mut self, piece: &[u8]) -> Result<(), OciError> {
        self.hash.update(piece);
        self.sink.write(piece)
    }
}

fn digest_header(headers: &HeaderMap<HeaderValue>) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

fn upload_url(at: &Endpoint, headers: &HeaderMap, what: &str) -> Result<Url, OciError> {
    let fault = |reason: &str| OciError::BadAnswer {
        host: at.authority.clone(),
        what: what.to_owned(),
        reason: reason.to_owned(),
    };
    let base = Url::parse(&at.url("blobs/uploads/")).map_err(|error| fault(&error.to_string()))?;
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let url =
        location.and_then(|text| base.join(text).ok()).ok_or_else(|| fault("it names no upload location"))?;
    Access::check_upload(at, &url)?;
    Ok(url)
}
