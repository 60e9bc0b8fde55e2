//! Who is connected: how many connections there are, in all and of each peer, and which of them may be closed when
//! others want to come in.
//!
//! A connection whose client still has to send something (its head, its body) costs that client nothing to hold open.
//! So it never keeps anybody else out: where there is no room for a new connection, the one that has waited for its
//! client for longest is closed.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Most connections at once.
pub const MAX_CONNECTIONS: usize = 512;
/// Most connections of one peer at once.
pub const MAX_PEER_CONNECTIONS: usize = 256;

/// Whose limits a connection counts against: an IPv4 address, or the 64 bits of an IPv6 address that a network gives out
/// together, since whoever has one of those addresses has them all. Behind a proxy all clients are one peer, and so are
/// all programs that come over loopback from one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer(IpAddr);

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) if !address.is_loopback() => {
                Self(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into())
            }
            address => Self(address),
        }
    }
}

/// What there is too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// Of this peer's.
    Peer,
    /// Of all.
    All,
}

/// All connections.
#[derive(Default)]
pub struct Connections(Mutex<Open>);

#[derive(Default)]
struct Open {
    next: u64,
    /// By the order in which they came.
    all: BTreeMap<u64, Connection>,
    peers: HashMap<Peer, usize>,
}

struct Connection {
    peer: Peer,
    /// How to close it; none once it has sent all of its request.
    close: Option<Arc<Notify>>,
}

/// A connection's place among the others. Dropping it gives it back.
pub struct Place {
    connections: Arc<Connections>,
    number: u64,
    pub peer: Peer,
    closed: Arc<Notify>,
}

impl Connections {
    /// A place for another connection; takes it from one that waits for its client, if need be.
    ///
    /// # Errors
    /// There is none, and all others are being served.
    pub fn enter(self: &Arc<Self>, peer: Peer) -> Result<Place, Full> {
        let mut open = self.open();
        if open.peers.get(&peer).is_some_and(|&count| count >= MAX_PEER_CONNECTIONS) {
            open.close_one(|connection| connection.peer == peer).ok_or(Full::Peer)?;
        }
        if open.all.len() >= MAX_CONNECTIONS {
            open.close_one(|_| true).ok_or(Full::All)?;
        }
        let (number, closed) = (open.next, Arc::new(Notify::new()));
        open.next += 1;
        open.all.insert(number, Connection { peer, close: Some(closed.clone()) });
        *open.peers.entry(peer).or_default() += 1;
        Ok(Place { connections: self.clone(), number, peer, closed })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Closes the oldest connection of this kind that waits for its client.
    fn close_one(&mut self, kind: impl Fn(&Connection) -> bool) -> Option<()> {
        let mut waiting = self.all.iter().filter(|(_, connection)| kind(connection));
        let (number, close) = waiting.find_map(|(&number, one)| Some((number, one.close.clone()?)))?;
        self.remove(number);
        close.notify_one();
        Some(())
    }

    fn remove(&mut self, number: u64) {
        let Some(Connection { peer, .. }) = self.all.remove(&number) else { return };
        let count = self.peers.get_mut(&peer).expect("each connection's peer is counted");
        *count -= 1;
        if *count == 0 {
            self.peers.remove(&peer);
        }
    }
}

impl Place {
    /// The client has sent all of its request: from now on it waits for the server.
    pub fn is_served(&self) {
        let mut open = self.connections.open();
        open.all.get_mut(&self.number).into_iter().for_each(|connection| connection.close = None);
    }

    /// Waits until the place is taken for somebody else.
    pub async fn closed(&self) {
        self.closed.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> Peer {
        Peer::from(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn addresses_of_one_network_are_one_peer() {
        let peer = |address: &str| Peer::from(address.parse::<IpAddr>().unwrap());
        assert_eq!(peer("2001:db8:1:2:3:4:5:6"), peer("2001:db8:1:2:ffff::1"));
        assert_ne!(peer("2001:db8:1:2::1"), peer("2001:db8:1:3::1"));
        assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
        assert_ne!(peer("10.0.0.1"), peer("10.0.0.2"));
        assert_ne!(peer("::1"), peer("::2"));
    }

    #[tokio::test]
    async fn who_waits_for_its_client_makes_room_the_oldest_first() {
        let connections = Arc::new(Connections::default());
        let enter = |last| connections.enter(peer(last));
        let mut places: Vec<_> = (0..MAX_PEER_CONNECTIONS).map(|_| enter(1).unwrap()).collect();
        places[0].is_served();
        places.push(enter(1).unwrap());
        places[1].closed().await;
        // dropped after its place was taken, it takes nobody's
        drop(places.remove(1));
        assert_eq!(connections.open().all.len(), MAX_PEER_CONNECTIONS);

        places.iter().for_each(Place::is_served);
        assert_eq!(enter(1).err(), Some(Full::Peer));
        let others: Vec<_> = (0..MAX_PEER_CONNECTIONS).map(|_| enter(2).unwrap()).collect();
        let third = enter(3).unwrap();
        others[0].closed().await;
        others.iter().chain([&third]).for_each(Place::is_served);
        assert_eq!(enter(4).err(), Some(Full::All));
        drop(third);
        assert!(enter(4).is_ok());
        drop((places, others));
        assert!(connections.open().all.is_empty() && connections.open().peers.is_empty());
    }
}
