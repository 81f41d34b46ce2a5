//! Whose turn it is.

/// Round robin over a list that may change between turns. It begins where it is told, so that agents that
/// start together don't all favour the same backend.
#[derive(Debug, Clone)]
pub struct Rotation {
    next: usize,
}

impl Rotation {
    /// Begins anywhere; `start` should be random.
    pub fn new(start: usize) -> Self {
        Self { next: start }
    }

    /// The order in which the backends of a list of this length are tried for the next connection: first the
    /// one whose turn it is, then each of the others once.
    pub fn order(&mut self, len: usize) -> impl Iterator<Item = usize> + use<> {
        let start = self.next.checked_rem(len).unwrap_or(0);
        self.next = self.next.wrapping_add(1);
        (start..len).chain(0..start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_gets_a_turn_and_a_second_chance() {
        let mut rotation = Rotation::new(4);
        let mut order = |len| rotation.order(len).collect::<Vec<_>>();
        assert_eq!(order(3), [1, 2, 0]);
        assert_eq!(order(3), [2, 0, 1]);
        assert_eq!(order(3), [0, 1, 2]);
        assert_eq!(order(0), [0usize; 0]);
        assert_eq!(order(1), [0]);
        let mut rotation = Rotation::new(usize::MAX);
        let _ = rotation.order(2);
        assert_eq!(rotation.order(2).count(), 2);
    }
}
