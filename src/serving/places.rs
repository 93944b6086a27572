//! The places that connections take, and who gives one up when all are taken.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout_at},
};

use super::connection::{ConnectionPhase, ServedConnection};

/// A connection as the choice sees it.
#[derive(Clone, Copy, Debug)]
struct PlaceHolder {
    source: IpAddr,
    phase: ConnectionPhase,
}

/// Whether there is a place for a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// There is.
    Free,
    /// This one gives it up.
    Of(usize),
    /// Everybody is being answered, and the newcomer's source has most of the places: it waits for its own.
    None,
}

/// Who gives up a place, in this order: the longest idle connection of a source that has most places, the longest idle one of a source that
/// has as many as the newcomer's, the longest busy one of a source that has most, if the newcomer's has fewer. The newcomer counts as if
/// it had one: so a source alone keeps its newest connections, several share, and nobody is pushed out by a source that has more.
fn room(held: &[PlaceHolder], newcomer: IpAddr, places: usize) -> Room {
    if held.len() < places {
        return Room::Free;
    }
    let mut counts = HashMap::from([(newcomer, 1_usize)]);
    for connection in held {
        *counts.entry(connection.source).or_default() += 1;
    }
    let most = counts.values().copied().max().unwrap_or_default();
    let of_newcomer = counts[&newcomer];
    let oldest = |is_busy: bool, at_least: usize| {
        let all = held.iter().enumerate();
        let eligible = all
            .filter(|(_, connection)| connection.phase.is_busy() == is_busy && counts[&connection.source] >= at_least);
        eligible.min_by_key(|(_, connection)| connection.phase.since()).map(|(index, _)| index)
    };
    let idle = oldest(false, most).or_else(|| oldest(false, of_newcomer));
    match idle.or_else(|| if of_newcomer < most { oldest(true, most) } else { None }) {
        Some(index) => Room::Of(index),
        None => Room::None,
    }
}

struct Place {
    connection: Arc<ServedConnection>,
    task: AbortHandle,
}

/// What became of a newcomer.
pub enum Acceptance {
    /// It has a place.
    Free,
    /// It has the place of a connection of this source.
    From(IpAddr),
    /// It has none; its own source has most of them and is being answered on all.
    Refused(IpAddr),
}

impl Acceptance {
    /// The source of which a connection was closed.
    pub const fn closed(&self) -> Option<IpAddr> {
        match self {
            Self::Free => None,
            Self::From(source) | Self::Refused(source) => Some(*source),
        }
    }
}

/// The connections of a server.
pub struct ConnectionPlaces {
    most: usize,
    held: Vec<Place>,
    tasks: JoinSet<()>,
}

impl ConnectionPlaces {
    /// All free.
    pub fn new(most: usize) -> Self {
        Self { most, held: Vec::new(), tasks: JoinSet::new() }
    }

    /// Gives a connection a place, of another if need be, and has it do its work.
    pub fn take(
        &mut self,
        connection: Arc<ServedConnection>,
        doing: impl Future<Output = ()> + Send + 'static,
    ) -> Acceptance {
        while self.tasks.try_join_next().is_some() {}
        self.held.retain(|place| !place.task.is_finished());
        let held: Vec<PlaceHolder> = self.held.iter().map(|place| place.connection.held()).collect();
        let taken = match room(&held, connection.source, self.most) {
            Room::Free => Acceptance::Free,
            Room::Of(index) => {
                let place = self.held.swap_remove(index);
                place.connection.is_cut.store(true, Ordering::Relaxed);
                place.task.abort();
                Acceptance::From(place.connection.source)
            }
            Room::None => {
                connection.is_cut.store(true, Ordering::Relaxed);
                return Acceptance::Refused(connection.source); // dropping what it would do closes it
            }
        };
        let task = self.tasks.spawn(doing);
        self.held.push(Place { connection, task });
        taken
    }

    /// Closes those that are idle, and waits until the others have been answered, but no longer than this.
    pub async fn end(mut self, longest: Duration) {
        let deadline = Instant::now() + longest;
        for place in &self.held {
            if !place.connection.phase().is_busy() {
                place.task.abort();
            }
        }
        while let Ok(Some(_)) = timeout_at(deadline, self.tasks.join_next()).await {}
    }
}

impl ServedConnection {
    fn held(&self) -> PlaceHolder {
        PlaceHolder { source: self.source, phase: self.phase() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: usize = 4;

    fn from(host: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, host])
    }

    /// Connections by host and phase, the first the longest in it.
    fn held(connections: &[(u8, bool)]) -> Vec<PlaceHolder> {
        let begin = Instant::now();
        let since = |index: usize| begin + Duration::from_secs(u64::try_from(index).unwrap_or_default());
        let phase = |index, busy| {
            if busy {
                ConnectionPhase::Busy { since: since(index) }
            } else {
                ConnectionPhase::Waiting { since: since(index), begun: None }
            }
        };
        let connections = connections.iter().enumerate();
        connections
            .map(|(index, (host, busy))| PlaceHolder { source: from(*host), phase: phase(index, *busy) })
            .collect()
    }

    const IDLE: bool = false;
    const BUSY: bool = true;

    #[test]
    fn a_newcomer_takes_the_place_of_the_longest_idle_connection_of_whoever_has_most() {
        assert_eq!(room(&held(&[(1, IDLE), (1, IDLE), (1, IDLE)]), from(1), PLACES), Room::Free);
        assert_eq!(room(&held(&[(2, IDLE), (1, IDLE), (1, IDLE), (1, BUSY)]), from(3), PLACES), Room::Of(1));
        let alone = held(&[(1, BUSY), (1, IDLE), (1, IDLE), (1, IDLE)]);
        assert_eq!(room(&alone, from(1), PLACES), Room::Of(1), "a source alone keeps its newest");
        let own = held(&[(2, IDLE), (1, IDLE), (1, IDLE), (3, IDLE)]);
        assert_eq!(room(&own, from(1), PLACES), Room::Of(1), "more of the same source push out nobody else");
    }

    #[test]
    fn whoever_is_answered_on_most_places_gives_one_up_to_another_source_but_not_to_its_own() {
        let hog = held(&[(2, IDLE), (1, BUSY), (1, BUSY), (1, BUSY)]);
        assert_eq!(room(&hog, from(3), PLACES), Room::Of(0), "an idle one costs nobody an answer");
        let hog = held(&[(2, BUSY), (1, BUSY), (1, BUSY), (1, BUSY)]);
        assert_eq!(room(&hog, from(3), PLACES), Room::Of(1));
        assert_eq!(room(&hog, from(2), PLACES), Room::Of(1));
        assert_eq!(room(&hog, from(1), PLACES), Room::None);
    }

    #[test]
    fn whoever_is_answered_on_most_places_pushes_out_nobody_who_is_about_to_ask() {
        let hog = held(&[(2, IDLE), (1, BUSY), (1, BUSY), (1, BUSY)]);
        assert_eq!(room(&hog, from(1), PLACES), Room::None, "it waits for its own");
        let several = held(&[(2, IDLE), (2, IDLE), (1, BUSY), (1, BUSY)]);
        assert_eq!(room(&several, from(1), PLACES), Room::None, "with one more it would have more");
        let hog = held(&[(2, IDLE), (2, IDLE), (2, BUSY), (1, BUSY)]);
        assert_eq!(room(&hog, from(1), PLACES), Room::Of(0), "who has more gives one up");
    }
}
