//! Conversations, in the shapes in which models are trained for them: a small set that is built in, told
//! apart by the template that comes with a model. Templates themselves are programs (Jinja) and are not run.

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Metadata key of a model file: the template, as the model's own software has it.
pub const CHAT_TEMPLATE: &str = "chat_template";

/// How messages become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChatFormat {
    /// `<|im_start|>role\ncontent<|im_end|>\n`
    ChatMl,
    /// `<|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>`
    Llama3,
}

impl ChatFormat {
    /// The marks before the role, behind the role (if there is one) and behind the content.
    fn marks(self) -> (&'static str, Option<&'static str>, &'static str) {
        match self {
            ChatFormat::ChatMl => ("<|im_start|>", None, "<|im_end|>"),
            ChatFormat::Llama3 => ("<|start_header_id|>", Some("<|end_header_id|>"), "<|eot_id|>"),
        }
    }
}

/// How the answer before a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// There is none: the conversation begins.
    Nothing,
    /// By the mark that ends a message, which the session holds.
    Ended,
    /// Without it.
    CutOff,
}

/// The conversations of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chat {
    format: ChatFormat,
    /// The system message of a conversation that brings none.
    system: Option<String>,
    /// Whether white space around messages is dropped.
    trims: bool,
    before_role: u32,
    behind_role: Option<u32>,
    end: u32,
}

impl Chat {
    /// Recognises a template: that of ChatML (SmolLM2, Qwen), with or without a system message of its own,
    /// or that of Llama 3.
    ///
    /// # Errors
    /// [`Error::Format`] for another template, and [`Error::Tokenizer`] for a vocabulary without its
    /// marks.
    pub fn new(template: &str, tokenizer: &Tokenizer) -> Result<Chat> {
        let has = |format: ChatFormat| template.contains(format.marks().0);
        let format = if has(ChatFormat::ChatMl) {
            ChatFormat::ChatMl
        } else if has(ChatFormat::Llama3) && !template.contains("date_string") {
            ChatFormat::Llama3
        } else {
            let start: String = template.chars().take(60).collect();
            return Err(Error::Format {
                what: format!("metadata key {CHAT_TEMPLATE}"),
                found: format!("{start:?}..."),
                expected: "a template of ChatML (<|im_start|>) or of Llama 3 (<|start_header_id|>, without \
                           the date)"
                    .to_owned(),
            });
        };
        let (before_role, behind_role, end) = format.marks();
        Ok(Chat {
            format,
            system: own_system(template, format),
            trims: template.contains("| trim") || template.contains("|trim"),
            before_role: mark(tokenizer, before_role)?,
            behind_role: behind_role.map(|text| mark(tokenizer, text)).transpose()?,
            end: mark(tokenizer, end)?,
        })
    }

    /// How messages become text.
    pub fn format(&self) -> ChatFormat {
        self.format
    }

    /// The system message of a conversation that brings none.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// The token that ends a message.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// The tokens of a user's message, up to where the answer begins. In front of the first come the token
    /// that begins a text and a system message: `system`, else the template's own. Marks that are written
    /// out in a message are text like other text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for text without tokens.
    pub fn turn(
        &self,
        tokenizer: &Tokenizer,
        before: Before,
        system: Option<&str>,
        message: &str,
    ) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        match before {
            Before::Nothing => {
                // Llama 3's template begins with it by itself.
                if let Some(specials) = tokenizer.specials()
                    && (specials.add_bos || self.format == ChatFormat::Llama3)
                {
                    tokens.extend(specials.bos);
                }
                if let Some(system) = system.or(self.system.as_deref()) {
                    self.message(tokenizer, "system", system, &mut tokens)?;
                }
            }
            Before::Ended => self.behind(tokenizer, &mut tokens)?,
            Before::CutOff => {
                tokens.push(self.end);
                self.behind(tokenizer, &mut tokens)?;
            }
        }
        self.message(tokenizer, "user", message, &mut tokens)?;
        self.header(tokenizer, "assistant", "", &mut tokens)?;
        Ok(tokens)
    }

    fn message(
        &self,
        tokenizer: &Tokenizer,
        role: &str,
        content: &str,
        tokens: &mut Vec<u32>,
    ) -> Result<()> {
        let content = if self.trims { content.trim() } else { content };
        self.header(tokenizer, role, content, tokens)?;
        tokens.push(self.end);
        self.behind(tokenizer, tokens)
    }

    /// The role, and the content in one piece with what stands between them.
    fn header(
        &self,
        tokenizer: &Tokenizer,
        role: &str,
        content: &str,
        tokens: &mut Vec<u32>,
    ) -> Result<()> {
        tokens.push(self.before_role);
        match self.behind_role {
            None => tokens.extend(tokenizer.encode_plain(&format!("{role}\n{content}"))?),
            Some(mark) => {
                tokens.extend(tokenizer.encode_plain(role)?);
                tokens.push(mark);
                tokens.extend(tokenizer.encode_plain(&format!("\n\n{content}"))?);
            }
        }
        Ok(())
    }

    /// What follows the mark that ends a message.
    fn behind(&self, tokenizer: &Tokenizer, tokens: &mut Vec<u32>) -> Result<()> {
        match self.format {
            ChatFormat::ChatMl => tokens.extend(tokenizer.encode_plain("\n")?),
            ChatFormat::Llama3 => {}
        }
        Ok(())
    }
}

/// The token that a mark is.
fn mark(tokenizer: &Tokenizer, text: &str) -> Result<u32> {
    match tokenizer.encode(text)?[..] {
        [token] => Ok(token),
        _ => Err(Error::Tokenizer(format!(
            "the vocabulary has no token {text:?}, which the chat template calls for"
        ))),
    }
}

/// The system message that a template brings: the literal between the marks of one.
fn own_system(template: &str, format: ChatFormat) -> Option<String> {
    let (start, middle, end) = format.marks();
    // A line break is one of Jinja's literals, or itself.
    let template = template.replace("\\n", "\n");
    let head = match middle {
        None => format!("{start}system\n"),
        Some(middle) => format!("{start}system{middle}\n\n"),
    };
    let (_, text) = template.split_once(&head)?;
    let (text, _) = text.split_once(end)?;
    let is_literal = !text.contains(['\'', '"', '{', '}']);
    (is_literal && !text.is_empty()).then(|| text.to_owned())
}
