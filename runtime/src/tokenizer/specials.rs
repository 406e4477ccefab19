//! What a tokenizer knows beyond pieces of text: the ids that begin and end a text, and tokens that
//! were added to its vocabulary.

use serde_json::{Value, json};

use super::json::Fields;
use super::pieces::refuse;
use crate::error::Result;

/// The ids with a meaning of their own, and whether a text begins with one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Specials {
    /// The token that begins a text.
    pub bos: Option<u32>,
    /// Tokens that end a text; none of them, where the model never ends one.
    pub eos: Vec<u32>,
    /// Whether the model was trained on texts with `bos` in front.
    pub add_bos: bool,
}

/// A token that is found in the text before anything else is done to it, as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    /// Its id, below the vocabulary's size.
    pub id: u32,
    /// Its text, not empty.
    pub content: String,
    /// Whether it is a mark of the model's own: not part of decoded text, and not found in text that
    /// nobody vouches for ([`encode_plain`](super::Tokenizer::encode_plain)).
    pub special: bool,
    /// Whether it takes white space in front of it with it.
    pub lstrip: bool,
    /// Whether it takes white space behind it with it.
    pub rstrip: bool,
    /// Whether it is looked for only between those that are not (in `tokenizers`: in the text as the
    /// normaliser leaves it, which must leave it as it is).
    pub normalized: bool,
}

impl AddedToken {
    /// A special token such as `<|endoftext|>`, which takes no white space with it.
    pub fn special(id: u32, content: &str) -> AddedToken {
        AddedToken {
            id,
            content: content.to_owned(),
            special: true,
            lstrip: false,
            rstrip: false,
            normalized: false,
        }
    }
}

impl AddedToken {
    /// As a model file has it; what is false is left out.
    pub(super) fn to_json(&self) -> Value {
        let mut json = json!({"id": self.id, "content": self.content});
        for (name, flag) in self.flags() {
            if flag {
                json[name] = Value::Bool(true);
            }
        }
        json
    }

    fn flags(&self) -> [(&'static str, bool); 4] {
        [
            ("special", self.special),
            ("lstrip", self.lstrip),
            ("rstrip", self.rstrip),
            ("normalized", self.normalized),
        ]
    }

    /// The list `added`.
    pub(super) fn list_from_json(json: &Fields<'_>) -> Result<Vec<AddedToken>> {
        json.list("added")?
            .iter()
            .map(|token| {
                let json = Fields::new(token, "tokenizer: added token");
                let Some(id) = json.id("id")? else {
                    return Err(json.wrong("id", None, "a token's id"));
                };
                Ok(AddedToken {
                    id,
                    content: json.text("content")?.to_owned(),
                    special: json.flag("special")?,
                    lstrip: json.flag("lstrip")?,
                    rstrip: json.flag("rstrip")?,
                    normalized: json.flag("normalized")?,
                })
            })
            .collect()
    }
}

impl Specials {
    /// Adds them to the JSON that a model file has.
    pub(super) fn to_json(&self, json: &mut Value) {
        if let Some(bos) = self.bos {
            json["bos"] = bos.into();
        }
        json["eos"] = self.eos.as_slice().into();
        json["add_bos"] = self.add_bos.into();
    }

    pub(super) fn from_json(json: &Fields<'_>) -> Result<Specials> {
        let eos = json.list("eos")?.iter().map(|id| {
            let found = id.as_u64().and_then(|id| u32::try_from(id).ok());
            found.ok_or_else(|| json.wrong("eos", Some(id), "a list of tokens' ids"))
        });
        Ok(Specials {
            bos: json.id("bos")?,
            eos: eos.collect::<Result<_>>()?,
            add_bos: json.flag("add_bos")?,
        })
    }

    /// All ids must be in the vocabulary, and the first token must be known where texts have one.
    pub(super) fn check(&self, vocab_size: usize) -> Result<()> {
        let mut ids = self.eos.iter().chain(&self.bos);
        if let Some(id) = ids.find(|id| **id as usize >= vocab_size) {
            let found = format!("id {id}");
            return Err(refuse("tokenizer: bos or eos", found, &format!("ids below {vocab_size}")));
        }
        if self.add_bos && self.bos.is_none() {
            return Err(refuse("tokenizer: add_bos", "no bos".to_owned(), "the id of bos"));
        }
        Ok(())
    }
}
