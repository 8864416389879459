//! The objects that were recorded or looked up last: a client may name an answer before its row is
//! committed.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use uuid::Uuid;

use crate::record::objects::{ObjectChanges, ObjectMaker};

/// Maximum number of objects that are kept in memory.
const MAX_RECENT_OBJECTS: usize = 16_384;

/// The makers of the objects that were recorded or looked up last. A maker never changes, so that no entry
/// is ever wrong.
#[derive(Debug, Default)]
pub(crate) struct RecentObjects {
    generations: Mutex<Generations>,
}

/// The newer half and the older half.
#[derive(Debug, Default)]
struct Generations {
    new: HashMap<String, ObjectMaker>,
    old: HashMap<String, ObjectMaker>,
}

impl RecentObjects {
    /// Keeps what a request made.
    pub(crate) fn keep(&self, interception_id: Uuid, changes: &ObjectChanges) {
        for object in &changes.made {
            let maker =
                ObjectMaker { user_id: changes.user_id, key: changes.key.clone(), interception_id };
            self.insert(&changes.provider, &object.id, maker);
        }
    }

    pub(crate) fn insert(&self, provider: &str, id: &str, maker: ObjectMaker) {
        let name = name(provider, id);
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if generations.new.contains_key(&name) || generations.old.contains_key(&name) {
            return;
        }
        if generations.new.len() >= MAX_RECENT_OBJECTS / 2 {
            generations.old = std::mem::take(&mut generations.new);
        }
        generations.new.insert(name, maker);
    }

    pub(crate) fn find(&self, provider: &str, id: &str) -> Option<ObjectMaker> {
        let name = name(provider, id);
        let generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.new.get(&name).or_else(|| generations.old.get(&name)).cloned()
    }
}

/// What stands for an object of a provider; no name of a provider contains a slash.
fn name(provider: &str, id: &str) -> String {
    format!("{provider}/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maker() -> ObjectMaker {
        ObjectMaker { user_id: Uuid::now_v7(), key: None, interception_id: Uuid::now_v7() }
    }

    #[test]
    fn the_first_maker_of_an_object_stays_its_maker() {
        let objects = RecentObjects::default();
        let (first, second) = (maker(), maker());
        objects.insert("openai", "resp_1", first.clone());
        objects.insert("openai", "resp_1", second.clone());
        objects.insert("other", "resp_1", second.clone());
        assert_eq!(objects.find("openai", "resp_1"), Some(first));
        assert_eq!(objects.find("other", "resp_1"), Some(second));
        assert_eq!(objects.find("openai", "resp_2"), None);
    }

    #[test]
    fn the_number_of_objects_in_memory_is_bounded() {
        let objects = RecentObjects::default();
        for number in 0..MAX_RECENT_OBJECTS * 2 {
            objects.insert("openai", &number.to_string(), maker());
        }
        let generations = objects.generations.lock().unwrap();
        assert!(generations.new.len() + generations.old.len() <= MAX_RECENT_OBJECTS);
        drop(generations);
        let last = (MAX_RECENT_OBJECTS * 2 - 1).to_string();
        assert!(objects.find("openai", &last).is_some());
        assert!(objects.find("openai", "0").is_none());
    }
}
