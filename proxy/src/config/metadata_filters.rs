//! Filters that set dynamic metadata.

use super::RegexRewrite;
use prost_types::Struct;

/// Values of heads that become metadata.
#[derive(Debug)]
pub struct HeaderToMetadata {
    /// Of requests.
    pub request: Vec<MetadataRule>,
    /// Of answers.
    pub response: Vec<MetadataRule>,
}

/// What one header or cookie becomes.
#[derive(Debug)]
pub struct MetadataRule {
    /// What is looked at.
    pub from: MetadataFrom,
    /// What is set where it is there.
    pub present: Option<MetadataEntry>,
    /// What is set where it is not.
    pub missing: Option<MetadataEntry>,
    /// What its value is made into first.
    pub rewrite: Option<RegexRewrite>,
}

/// What is looked at.
#[derive(Debug)]
pub enum MetadataFrom {
    /// A header, lower case; `remove` takes it away then.
    Header {
        /// Its name.
        name: Box<str>,
        /// Nobody behind this filter sees it.
        remove: bool,
    },
    /// A cookie.
    Cookie(Box<str>),
}

/// A value that is set.
#[derive(Debug)]
pub struct MetadataEntry {
    /// The namespace.
    pub namespace: Box<str>,
    /// The value's name.
    pub key: Box<str>,
    /// The value itself instead of what was found; empty is none.
    pub value: Box<str>,
    /// What it is read as.
    pub kind: MetadataKind,
    /// It is written in Base64.
    pub base64: bool,
}

/// What a text is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataKind {
    /// A text.
    Text,
    /// A number.
    Number,
    /// A value as protobuf encodes it.
    Protobuf,
}

/// Fixed values of one namespace.
#[derive(Debug)]
pub struct FixedMetadata {
    /// The namespace.
    pub namespace: Box<str>,
    /// The values.
    pub fields: Struct,
    /// They are also set where the namespace has some already.
    pub overwrite: bool,
}
