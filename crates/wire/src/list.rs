//! Lists of the objects that a provider stores, and their pages for one user.

use crate::json::{Edits, JsonError, Object, Value};

/// A page of a list: its entries are in `data`, as in the APIs of OpenAI and Anthropic.
#[derive(Debug)]
pub struct ObjectList<'a> {
    source: &'a [u8],
    object: Object<'a>,
    entries: Vec<(Option<String>, Value<'a>)>,
}

impl<'a> ObjectList<'a> {
    /// Reads a page; `None` if the body is no list.
    #[must_use]
    pub fn read(source: &'a [u8]) -> Option<Self> {
        let object = Object::parse(source).ok()?;
        let data = object.member("data").filter(|data| data.raw().starts_with('['))?;
        let id = |entry: &Value<'_>| Some(entry.get("id")?.as_str()?.into_owned());
        let entries = data.elements().map(|entry| (id(&entry), entry)).collect();
        Some(Self { source, object, entries })
    }

    /// The ids of its entries.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter_map(|(id, _)| id.as_deref())
    }

    /// The page with those entries only whose ids are to be kept. `first_id` and `last_id`, from which the
    /// next page is asked for, are those of the entries that are left.
    ///
    /// # Errors
    ///
    /// Returns an error if the page cannot be edited.
    pub fn retain(&self, keeps: impl Fn(&str) -> bool) -> Result<Vec<u8>, JsonError> {
        let is_kept = |id: &Option<String>| id.as_deref().is_some_and(&keeps);
        let kept: Vec<&(Option<String>, Value<'_>)> =
            self.entries.iter().filter(|(id, _)| is_kept(id)).collect();
        if kept.len() == self.entries.len() {
            return Ok(self.source.to_vec());
        }
        let data: Vec<&str> = kept.iter().map(|(_, entry)| entry.raw()).collect();
        let mut edits = Edits::new();
        edits.set(&["data"], &format!("[{}]", data.join(",")));
        for (key, entry) in [("first_id", kept.first()), ("last_id", kept.last())] {
            let id = entry.and_then(|(_, entry)| entry.get("id"));
            if self.object.member(key).is_some() {
                edits.set(&[key], id.map_or("null", |id| id.raw()));
            }
        }
        edits.apply(self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::ObjectList;

    #[test]
    fn a_page_keeps_the_entries_of_one_user_as_they_were_written() {
        let page = br#"{"object":"list", "data": [{"id":"a","n":1.0}, {"id":"b"}, {"x":1}, {"id":"c"}],"first_id":"a","last_id":"c","has_more":true}"#;
        let list = ObjectList::read(page).unwrap();
        assert_eq!(list.ids().collect::<Vec<_>>(), ["a", "b", "c"]);
        let kept = |ids: &[&str]| String::from_utf8(list.retain(|id| ids.contains(&id)).unwrap());
        assert_eq!(
            kept(&["a", "b"]).unwrap(),
            r#"{"object":"list", "data": [{"id":"a","n":1.0},{"id":"b"}],"first_id":"a","last_id":"b","has_more":true}"#
        );
        assert_eq!(
            kept(&[]).unwrap(),
            r#"{"object":"list", "data": [],"first_id":null,"last_id":null,"has_more":true}"#
        );
    }

    #[test]
    fn a_page_that_is_the_users_alone_is_not_changed() {
        let page = br#"{ "data" : [ {"id" : "a"} ] }"#;
        assert_eq!(ObjectList::read(page).unwrap().retain(|_| true).unwrap(), page);
        assert!(ObjectList::read(br#"{"data":{"id":"a"}}"#).is_none());
        assert!(ObjectList::read(b"[]").is_none());
    }
}
