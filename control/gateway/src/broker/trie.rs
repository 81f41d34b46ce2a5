//! Subscriptions by topic level, so that the cost of a publication does not grow with the number of clients.

use std::collections::{BTreeMap, HashMap};

use lichen_mqtt::packet::QoS;

/// Names a subscriber.
pub(super) type SubscriberId = u64;

/// The subscriptions of everybody.
#[derive(Debug, Default)]
pub(super) struct Trie {
    root: Level,
}

#[derive(Debug, Default)]
struct Level {
    children: HashMap<Box<str>, Level>,
    subscribers: Vec<(SubscriberId, QoS)>,
}

impl Level {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.subscribers.is_empty()
    }

    fn remove(&mut self, mut levels: std::str::Split<'_, char>, id: SubscriberId) {
        let Some(level) = levels.next() else {
            self.subscribers.retain(|(other, _)| *other != id);
            return;
        };
        if let Some(child) = self.children.get_mut(level) {
            child.remove(levels, id);
            if child.is_empty() {
                self.children.remove(level);
            }
        }
    }

    fn collect(&self, levels: &[&str], wildcards: bool, found: &mut BTreeMap<SubscriberId, QoS>) {
        let mut add = |level: &Level| {
            for (id, qos) in &level.subscribers {
                let best = found.entry(*id).or_insert(*qos);
                if (*qos as u8) > (*best as u8) {
                    *best = *qos;
                }
            }
        };
        // A trailing `#` also takes its parent.
        if let Some(rest) = self.children.get("#").filter(|_| wildcards) {
            add(rest);
        }
        let Some((first, rest)) = levels.split_first() else {
            add(self);
            return;
        };
        if let Some(child) = self.children.get(*first) {
            child.collect(rest, true, found);
        }
        if let Some(child) = self.children.get("+").filter(|_| wildcards) {
            child.collect(rest, true, found);
        }
    }
}

impl Trie {
    /// Adds a subscription, or changes its quality of service.
    pub(super) fn insert(&mut self, filter: &str, id: SubscriberId, qos: QoS) {
        let mut level = &mut self.root;
        for name in filter.split('/') {
            level = level.children.entry(name.into()).or_default();
        }
        level.subscribers.retain(|(other, _)| *other != id);
        level.subscribers.push((id, qos));
    }

    /// Takes a subscription back.
    pub(super) fn remove(&mut self, filter: &str, id: SubscriberId) {
        self.root.remove(filter.split('/'), id);
    }

    /// Who gets a message on this topic: everyone once, at the best quality of service subscribed.
    pub(super) fn matches(&self, topic: &str) -> BTreeMap<SubscriberId, QoS> {
        let levels: Vec<&str> = topic.split('/').collect();
        let mut found = BTreeMap::new();
        // Wildcards at the first level do not take the server's own topics (MQTT 3.1.1, section 4.7.2).
        self.root.collect(&levels, !topic.starts_with('$'), &mut found);
        found
    }

    /// Whether nobody subscribes to anything.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.root.is_empty()
    }
}

/// Whether a topic can be published to.
pub(super) fn valid_topic(topic: &str) -> bool {
    !topic.is_empty() && topic.len() <= 256 && !topic.contains(['+', '#', '\0'])
}

/// Whether a filter can be subscribed to.
pub(super) fn valid_filter(filter: &str) -> bool {
    let mut levels = filter.split('/').peekable();
    let mut valid = !filter.is_empty() && filter.len() <= 256 && !filter.contains('\0');
    while let Some(level) = levels.next() {
        valid &= match level {
            "+" => true,
            "#" => levels.peek().is_none(),
            other => !other.contains(['+', '#']),
        };
    }
    valid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_as_mqtt_says() {
        let check = |filter: &str, topic: &str, expect: bool| {
            let mut trie = Trie::default();
            trie.insert(filter, 1, QoS::AtMostOnce);
            assert_eq!(trie.matches(topic).contains_key(&1), expect, "{filter} {topic}");
            assert!(valid_filter(filter));
            trie.remove(filter, 1);
            assert!(trie.is_empty());
        };
        check("a/b/c", "a/b/c", true);
        check("a/b", "a/b/c", false);
        check("a/b/c", "a/b", false);
        check("a/+/c", "a/b/c", true);
        check("a/+/c", "a/b/d", false);
        check("a/+", "a/", true);
        check("+", "a", true);
        check("+/+", "/a", true);
        check("a/#", "a", true);
        check("a/#", "a/b/c", true);
        check("#", "a/b", true);
        check("#", "$SYS/x", false);
        check("+/x", "$SYS/x", false);
        check("$SYS/#", "$SYS/x", true);
    }

    #[test]
    fn overlapping_subscriptions_deliver_once_at_the_best_quality() {
        let mut trie = Trie::default();
        trie.insert("a/#", 1, QoS::AtMostOnce);
        trie.insert("a/b", 1, QoS::AtLeastOnce);
        trie.insert("a/b", 2, QoS::AtMostOnce);
        assert_eq!(trie.matches("a/b"), [(1, QoS::AtLeastOnce), (2, QoS::AtMostOnce)].into());
    }

    #[test]
    fn knows_what_is_invalid() {
        for bad in ["", "a/#/b", "a#", "a+/b", "#a", "a\0"] {
            assert!(!valid_filter(bad), "{bad:?}");
        }
        for bad in ["", "a/+", "a/#", "a\0b"] {
            assert!(!valid_topic(bad), "{bad:?}");
        }
    }
}
