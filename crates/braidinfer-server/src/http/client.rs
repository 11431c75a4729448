//! Who sent a request: the API key it brought, or else the address that it came from.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};

use braidinfer::engine::ClientId;

/// The address of a client. An IPv6 client has a whole /64 network for itself, so only the network counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer(IpAddr);

impl Peer {
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(v6) => Self(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into()),
            v4 => Self(v4),
        }
    }
}

/// The client of a request, as an extension of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Client(pub ClientId);

/// Makes the numbers of clients. They are salted, so that nobody can choose a key or address with the number of another.
#[derive(Debug, Default)]
pub struct Clients(RandomState);

impl Clients {
    /// The client with the key of this digest, if the server asked for one, or else at this address.
    pub fn client(&self, key: Option<&[u8; 32]>, peer: Option<&Peer>) -> Client {
        Client(ClientId(self.0.hash_one((key, key.map_or(peer, |_| None)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Peer {
        Peer::of(text.parse().expect("an address"))
    }

    #[test]
    fn networks_and_keys_tell_clients_apart() {
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:2"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
        assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
        assert_ne!(peer("10.0.0.1"), peer("10.0.0.2"));
        let (clients, near, far) = (Clients::default(), peer("10.0.0.1"), peer("10.0.0.2"));
        let id = |key, peer| clients.client(key, Some(peer)).0;
        assert_eq!(id(Some(&[1; 32]), &near), id(Some(&[1; 32]), &far), "the key counts, wherever it is used");
        assert_ne!(id(Some(&[1; 32]), &near), id(Some(&[2; 32]), &near));
        assert_ne!(id(None, &near), id(None, &far));
    }
}
