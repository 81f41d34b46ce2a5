//! Where a session keeps what it must keep: a parameter, so that a microcontroller uses fixed memory and a
//! server with ten thousand sessions uses no more than each needs.

/// A growing or fixed buffer of bytes.
pub trait Bytes: Default + AsRef<[u8]> + AsMut<[u8]> {
    /// Appends bytes, or changes nothing and returns false if they don't fit.
    #[must_use]
    fn extend(&mut self, bytes: &[u8]) -> bool;
    /// Sets the length, filling with zeros; changes nothing and returns false if that does not fit.
    #[must_use]
    fn resize(&mut self, len: usize) -> bool;
    /// Takes all the memory that there is; false if there is no such bound.
    #[must_use]
    fn resize_to_capacity(&mut self) -> bool;
    /// Drops the first bytes.
    fn drop_front(&mut self, count: usize);
    /// Frees what is not used, where that means anything.
    fn shrink(&mut self);
}

/// A list that keeps its order and is used from both ends.
pub trait List<T>: Default {
    /// Appends an element, or gives it back if there is no room.
    fn push_back(&mut self, value: T) -> Result<(), T>;
    /// Puts an element first, or gives it back if there is no room.
    fn push_front(&mut self, value: T) -> Result<(), T>;
    /// Takes the first element.
    fn pop_front(&mut self) -> Option<T>;
    /// Takes the last element.
    fn pop_back(&mut self) -> Option<T>;
    /// Takes the element at an index.
    fn remove(&mut self, index: usize) -> Option<T>;
    /// How many elements there are.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// How many elements would fit at most.
    fn capacity(&self) -> usize;
    /// The elements in order.
    fn iter<'a>(&'a self) -> impl DoubleEndedIterator<Item = &'a T>
    where
        T: 'a;
    /// The elements in order, to be changed.
    fn iter_mut<'a>(&'a mut self) -> impl DoubleEndedIterator<Item = &'a mut T>
    where
        T: 'a;
}

/// The kinds of memory that a session uses.
pub trait Storage {
    /// Holds one message.
    type Bytes: Bytes;
    /// Holds several of anything.
    type List<T>: List<T>;
}

/// Fixed memory: lists of at most `ENTRIES`, messages of at most `BYTES`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fixed<const ENTRIES: usize, const BYTES: usize>;

impl<const ENTRIES: usize, const BYTES: usize> Storage for Fixed<ENTRIES, BYTES> {
    type Bytes = heapless::Vec<u8, BYTES>;
    type List<T> = heapless::Vec<T, ENTRIES>;
}

impl<const N: usize> Bytes for heapless::Vec<u8, N> {
    fn extend(&mut self, bytes: &[u8]) -> bool {
        self.extend_from_slice(bytes).is_ok()
    }
    fn resize(&mut self, len: usize) -> bool {
        heapless::Vec::resize(self, len, 0).is_ok()
    }
    fn resize_to_capacity(&mut self) -> bool {
        Bytes::resize(self, N)
    }
    fn drop_front(&mut self, count: usize) {
        let count = count.min(self.as_slice().len());
        self.copy_within(count.., 0);
        let left = self.as_slice().len() - count;
        self.truncate(left);
    }
    fn shrink(&mut self) {}
}

impl<T, const N: usize> List<T> for heapless::Vec<T, N> {
    fn push_back(&mut self, value: T) -> Result<(), T> {
        self.push(value)
    }
    fn push_front(&mut self, value: T) -> Result<(), T> {
        self.insert(0, value)
    }
    fn pop_front(&mut self) -> Option<T> {
        List::remove(self, 0)
    }
    fn pop_back(&mut self) -> Option<T> {
        self.pop()
    }
    fn remove(&mut self, index: usize) -> Option<T> {
        (index < self.as_slice().len()).then(|| heapless::Vec::remove(self, index))
    }
    fn len(&self) -> usize {
        self.as_slice().len()
    }
    fn capacity(&self) -> usize {
        N
    }
    fn iter<'a>(&'a self) -> impl DoubleEndedIterator<Item = &'a T>
    where
        T: 'a,
    {
        self.as_slice().iter()
    }
    fn iter_mut<'a>(&'a mut self) -> impl DoubleEndedIterator<Item = &'a mut T>
    where
        T: 'a,
    {
        self.as_mut_slice().iter_mut()
    }
}

#[cfg(any(feature = "alloc", test))]
pub use growable::Growable;

#[cfg(any(feature = "alloc", test))]
mod growable {
    use alloc::collections::VecDeque;
    use alloc::vec::Vec;

    use super::{Bytes, List, Storage};

    /// Memory from the heap, bounded by the session's limits alone.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Growable;

    impl Storage for Growable {
        type Bytes = Vec<u8>;
        type List<T> = VecDeque<T>;
    }

    impl Bytes for Vec<u8> {
        fn extend(&mut self, bytes: &[u8]) -> bool {
            self.extend_from_slice(bytes);
            true
        }
        fn resize(&mut self, len: usize) -> bool {
            Vec::resize(self, len, 0);
            true
        }
        fn resize_to_capacity(&mut self) -> bool {
            false
        }
        fn drop_front(&mut self, count: usize) {
            self.drain(..count.min(self.len()));
        }
        fn shrink(&mut self) {
            self.shrink_to_fit();
        }
    }

    impl<T> List<T> for VecDeque<T> {
        fn push_back(&mut self, value: T) -> Result<(), T> {
            VecDeque::push_back(self, value);
            Ok(())
        }
        fn push_front(&mut self, value: T) -> Result<(), T> {
            VecDeque::push_front(self, value);
            Ok(())
        }
        fn pop_front(&mut self) -> Option<T> {
            VecDeque::pop_front(self)
        }
        fn pop_back(&mut self) -> Option<T> {
            VecDeque::pop_back(self)
        }
        fn remove(&mut self, index: usize) -> Option<T> {
            VecDeque::remove(self, index)
        }
        fn len(&self) -> usize {
            VecDeque::len(self)
        }
        fn capacity(&self) -> usize {
            usize::MAX
        }
        fn iter<'a>(&'a self) -> impl DoubleEndedIterator<Item = &'a T>
        where
            T: 'a,
        {
            VecDeque::iter(self)
        }
        fn iter_mut<'a>(&'a mut self) -> impl DoubleEndedIterator<Item = &'a mut T>
        where
            T: 'a,
        {
            VecDeque::iter_mut(self)
        }
    }
}
