//! Service account tokens: which pod does a token belong to?
//!
//! In a cluster the API server says so (TokenReview). With a folder of YAML there is no API server: tokens are then the texts
//! `dev:<namespace>/<pod>`, which are accepted in that mode only. A token is never logged, nor part of an error.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::{Api, PostParams};
use leno_core::ObjectKey;
use tokio::sync::Semaphore;

/// TokenReviews at a time; more wait.
pub const MAX_REVIEWS: usize = 16;
/// How long a proof may take to check, the wait for a turn included.
pub const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a review is tried again when the API server does not answer.
const ATTEMPTS: u32 = 3;
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// What a token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPod {
    /// The pod that it is bound to.
    pub pod: ObjectKey,
    /// Its uid; `None` where nobody can know (a folder of YAML).
    pub uid: Option<String>,
    /// Its service account; `None` where the token does not say.
    pub service_account: Option<String>,
}

/// Why a token proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is not valid, or not for this mesh.
    #[error("the token is not valid: {0}")]
    Invalid(String),
    /// It is of a service account, but of no pod.
    #[error("the token is not bound to a pod: mount it with a projected volume")]
    NotBound,
    /// It could not be checked now.
    #[error("the token cannot be checked now: {0}")]
    Unavailable(String),
}

/// Who checks tokens.
pub enum Tokens {
    /// The API server.
    Kubernetes {
        /// Its client.
        client: kube::Client,
        /// Turns.
        turns: Arc<Semaphore>,
    },
    /// Nobody: `dev:<namespace>/<pod>` is believed.
    Development,
}

impl Tokens {
    /// Asks the API server.
    pub fn kubernetes(client: kube::Client) -> Self {
        Tokens::Kubernetes { client, turns: Arc::new(Semaphore::new(MAX_REVIEWS)) }
    }

    /// Which pod a token belongs to.
    ///
    /// # Errors
    ///
    /// [`TokenError`].
    pub async fn check(&self, token: &str) -> Result<TokenPod, TokenError> {
        match self {
            Tokens::Development => development(token),
            Tokens::Kubernetes { client, turns } => {
                let review = async {
                    let turn = turns.acquire().await.map_err(|error| TokenError::Unavailable(error.to_string()))?;
                    let status = review(client, token).await;
                    drop(turn);
                    judge(status?)
                };
                tokio::time::timeout(REVIEW_TIMEOUT, review)
                    .await
                    .unwrap_or_else(|_| Err(TokenError::Unavailable("the API server is slow".to_owned())))
            }
        }
    }
}

fn development(token: &str) -> Result<TokenPod, TokenError> {
    let pod = token.strip_prefix("dev:").and_then(|pod| pod.split_once('/'));
    let Some((namespace, name)) = pod else {
        return Err(TokenError::Invalid("with --config-dir a token is dev:<namespace>/<pod>".to_owned()));
    };
    Ok(TokenPod { pod: ObjectKey::new(namespace, name), uid: None, service_account: None })
}

async fn review(client: &kube::Client, token: &str) -> Result<TokenReviewStatus, TokenError> {
    let api: Api<TokenReview> = Api::all(client.clone());
    let request = TokenReview {
        spec: TokenReviewSpec { audiences: Some(vec![leno_api::AUDIENCE.to_owned()]), token: Some(token.to_owned()) },
        ..TokenReview::default()
    };
    let mut wait = Duration::from_millis(100);
    let mut attempt = 1;
    loop {
        match api.create(&PostParams::default(), &request).await {
            Ok(TokenReview { status: Some(status), .. }) => return Ok(status),
            Ok(_) => return Err(TokenError::Unavailable("the API server gave no verdict".to_owned())),
            // The error may hold the request; what is said outside is only its kind.
            Err(kube::Error::Api(status)) if (400..500).contains(&status.code) && status.code != 429 => {
                return Err(TokenError::Unavailable(format!("the API server refused the review: {}", status.reason)));
            }
            Err(_) if attempt < ATTEMPTS => {
                attempt += 1;
                tokio::time::sleep(wait).await;
                wait *= 4;
            }
            Err(_) => return Err(TokenError::Unavailable("the API server does not answer".to_owned())),
        }
    }
}

fn judge(status: TokenReviewStatus) -> Result<TokenPod, TokenError> {
    if status.authenticated != Some(true) {
        // The message of the API server is about the token, not the token itself.
        return Err(TokenError::Invalid(status.error.unwrap_or_else(|| "the API server does not know it".to_owned())));
    }
    if !status.audiences.iter().flatten().any(|audience| audience == leno_api::AUDIENCE) {
        return Err(TokenError::Invalid(format!("its audience is not {}", leno_api::AUDIENCE)));
    }
    let user = status.user.unwrap_or_default();
    let account = user.username.as_deref().and_then(|name| name.strip_prefix("system:serviceaccount:"));
    let Some((namespace, account)) = account.and_then(|account| account.split_once(':')) else {
        return Err(TokenError::Invalid("it is not of a service account".to_owned()));
    };
    let extra = user.extra.unwrap_or_default();
    let only = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([one]) if !one.is_empty() => Ok(one.clone()),
        _ => Err(TokenError::NotBound),
    };
    Ok(TokenPod {
        pod: ObjectKey::new(namespace, only(POD_NAME)?),
        uid: Some(only(POD_UID)?),
        service_account: Some(account.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::authentication::v1::UserInfo;

    fn status(audience: &str, user: &str, extra: &[(&str, &str)]) -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![audience.to_owned()]),
            user: Some(UserInfo {
                username: Some(user.to_owned()),
                extra: Some(extra.iter().map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()])).collect()),
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    #[test]
    fn token_when_bound_to_a_pod_then_names_pod_and_account() {
        let extra = [(POD_NAME, "reviews-1"), (POD_UID, "u-1")];
        let found = judge(status("leno", "system:serviceaccount:shop:reviews", &extra)).unwrap();
        assert_eq!(found.pod, ObjectKey::new("shop", "reviews-1"));
        assert_eq!(found.uid.as_deref(), Some("u-1"));
        assert_eq!(found.service_account.as_deref(), Some("reviews"));
    }

    #[test]
    fn token_when_not_bound_to_a_pod_then_proves_nothing() {
        let found = judge(status("leno", "system:serviceaccount:shop:reviews", &[]));
        assert_eq!(found, Err(TokenError::NotBound));
    }

    #[test]
    fn token_when_of_another_audience_or_user_then_invalid() {
        let extra = [(POD_NAME, "reviews-1"), (POD_UID, "u-1")];
        assert!(matches!(
            judge(status("api", "system:serviceaccount:shop:reviews", &extra)),
            Err(TokenError::Invalid(_))
        ));
        assert!(matches!(judge(status("leno", "admin", &extra)), Err(TokenError::Invalid(_))));
        let unknown = TokenReviewStatus { authenticated: Some(false), ..TokenReviewStatus::default() };
        assert!(matches!(judge(unknown), Err(TokenError::Invalid(_))));
    }

    #[test]
    fn development_token_when_not_of_its_form_then_the_error_does_not_repeat_it() {
        let error = development("secret-token").unwrap_err().to_string();
        assert!(!error.contains("secret-token") && error.contains("dev:<namespace>/<pod>"), "{error}");
    }
}
