//! Tickets sealed with keys that a configuration brings: replicas that share them resume each other's sessions (RFC 5077, section 4).

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::cipher::{
    AES_256, DecryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use rustls::server::ProducesTickets;

/// Keys at most: one that seals, and those of before.
pub const MAX_TICKET_KEYS: usize = 64;
/// Bytes of a key: 16 of its name, 32 that authenticate, 32 that encrypt, as Envoy reads them.
pub const TICKET_KEY: usize = 80;
const NAME: usize = 16;
const IV: usize = 16;
const TAG: usize = 32;

/// Keys for tickets; the first one seals, each of them opens.
pub struct TicketKeys(Vec<TicketKey>);

struct TicketKey {
    name: [u8; NAME],
    authentic: hmac::Key,
    secret: [u8; 32],
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

impl TicketKeys {
    /// These keys, of [`TICKET_KEY`] bytes each.
    ///
    /// # Errors
    /// When there are none or too many, or one has another length; in words.
    pub fn new(keys: &[Vec<u8>]) -> Result<Self, String> {
        if keys.is_empty() || keys.len() > MAX_TICKET_KEYS {
            return Err(format!("are {}; between 1 and {MAX_TICKET_KEYS} are taken", keys.len()));
        }
        let key = |(index, bytes): (usize, &Vec<u8>)| {
            let wrong = || format!("has {} bytes at [{index}]; a key has {TICKET_KEY}", bytes.len());
            let (name, rest) = bytes.split_first_chunk().ok_or_else(wrong)?;
            let (authentic, rest) = rest.split_first_chunk::<32>().ok_or_else(wrong)?;
            let secret = rest.try_into().map_err(|_| wrong())?;
            Ok(TicketKey { name: *name, authentic: hmac::Key::new(hmac::HMAC_SHA256, authentic), secret })
        };
        keys.iter().enumerate().map(key).collect::<Result<_, _>>().map(Self)
    }
}

impl TicketKey {
    fn cipher(&self) -> Option<UnboundCipherKey> {
        UnboundCipherKey::new(&AES_256, &self.secret).ok()
    }
}

/// Seals the sessions of one context with shared keys.
#[derive(Debug)]
pub struct SharedTickets {
    /// The keys.
    pub keys: Arc<TicketKeys>,
    /// A hash of what decides who is let in and what is shown: a ticket of a context that differs in it is worth nothing.
    pub bound_to: [u8; 32],
}

impl ProducesTickets for SharedTickets {
    fn enabled(&self) -> bool {
        true
    }

    /// The keys live as long as the configuration has them (see [`super::tickets::Lasting`]); a client may be told of a week at most
    /// (RFC 8446, section 4.6.1).
    fn lifetime(&self) -> u32 {
        7 * 24 * 3600
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let key = self.keys.0.first()?;
        let mut sealed = plain.to_vec();
        let context = PaddedBlockEncryptingKey::cbc_pkcs7(key.cipher()?).ok()?.encrypt(&mut sealed).ok()?;
        let DecryptionContext::Iv128(iv) = context else { return None };
        let mut ticket = Vec::with_capacity(NAME + IV + sealed.len() + TAG);
        ticket.extend_from_slice(&key.name);
        ticket.extend_from_slice(iv.as_ref());
        ticket.extend_from_slice(&sealed);
        let tag = hmac::sign(&key.authentic, &[&ticket[..], &self.bound_to].concat());
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (body, tag) = ticket.split_at_checked(ticket.len().checked_sub(TAG)?)?;
        let (name, rest) = body.split_first_chunk::<NAME>()?;
        let (iv, sealed) = rest.split_first_chunk::<IV>()?;
        let key = self.keys.0.iter().find(|key| key.name == *name)?;
        hmac::verify(&key.authentic, &[body, &self.bound_to].concat(), tag).ok()?;
        let mut opened = sealed.to_vec();
        let context = DecryptionContext::Iv128(FixedLength::from(iv));
        let plain = PaddedBlockDecryptingKey::cbc_pkcs7(key.cipher()?).ok()?.decrypt(&mut opened, context).ok()?;
        Some(plain.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[u8]) -> Arc<TicketKeys> {
        let key = |name: &u8| vec![*name; TICKET_KEY];
        Arc::new(TicketKeys::new(&names.iter().map(key).collect::<Vec<_>>()).unwrap())
    }

    fn tickets(names: &[u8], bound_to: u8) -> SharedTickets {
        SharedTickets { keys: keys(names), bound_to: [bound_to; 32] }
    }

    #[test]
    fn ticket_when_another_replica_has_the_key_then_it_opens_it_also_after_a_rotation() {
        let ticket = tickets(&[1, 2], 7).encrypt(b"session").unwrap();
        assert_ne!(ticket, tickets(&[1, 2], 7).encrypt(b"session").unwrap(), "no vector is used twice");
        for names in [&[1][..], &[3, 1], &[2, 3, 1]] {
            assert_eq!(tickets(names, 7).decrypt(&ticket).as_deref(), Some(&b"session"[..]), "{names:?}");
        }
        assert_eq!(tickets(&[2], 7).decrypt(&ticket), None, "nobody has its key any longer");
        assert_eq!(tickets(&[1], 8).decrypt(&ticket), None, "a context that takes other clients");
    }

    #[test]
    fn ticket_when_a_byte_is_another_or_it_is_cut_then_it_is_worth_nothing() {
        let tickets = tickets(&[1], 0);
        let ticket = tickets.encrypt(b"session").unwrap();
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(tickets.decrypt(&changed), None, "byte {at}");
            assert_eq!(tickets.decrypt(&ticket[..at]), None, "{at} bytes");
        }
    }

    #[test]
    fn keys_when_they_are_none_or_of_another_length_then_they_are_refused_and_never_shown() {
        assert!(TicketKeys::new(&[]).is_err());
        assert!(TicketKeys::new(&vec![vec![0; 80]; 65]).is_err());
        let error = TicketKeys::new(&[vec![0; 80], vec![0; 48]]).unwrap_err();
        assert_eq!(error, "has 48 bytes at [1]; a key has 80");
        assert!(TicketKeys::new(&[vec![0; 81]]).is_err());
        assert_eq!(format!("{:?}", keys(&[1, 2])), "2 keys");
    }
}
