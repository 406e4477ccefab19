//! What a tokenizer knows beyond pieces of text: the ids that begin and end a text, and tokens that
//! were added to its vocabulary.

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
