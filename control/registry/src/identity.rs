//! Who asks.

/// The group whose members may use the whole API.
pub const MASTERS_GROUP: &str = "system:masters";

/// A user and the groups it belongs to. The registry records it (as the field manager of last resort) and never
/// judges it: whether it may do what it asks is decided before, by the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user's name, `system:node:edge-1` for example.
    pub user: String,
    /// The groups that the user belongs to.
    pub groups: Vec<String>,
}

impl Identity {
    /// An identity with its groups.
    pub fn new(user: impl Into<String>, groups: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { user: user.into(), groups: groups.into_iter().map(Into::into).collect() }
    }

    /// A part of the control plane: `system:kube-scheduler`, `system:controller:deployment-controller`.
    pub fn component(user: impl Into<String>) -> Self {
        Self::new(user, ["system:authenticated"])
    }

    /// Whether the API server lets this identity do everything.
    #[must_use]
    pub fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS_GROUP)
    }

    /// The field manager of writes that name none: the last segment of the user's name.
    #[must_use]
    pub fn default_manager(&self) -> &str {
        match self.user.rsplit(':').next() {
            Some(last) if !last.is_empty() => last,
            _ => "unknown",
        }
    }
}
