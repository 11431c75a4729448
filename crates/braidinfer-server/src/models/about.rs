//! What is told of a model, loaded or not.

use braidinfer::conversation::{ReasoningFormat, ToolCallFormat};
use braidinfer::text::InfillTokens;
use braidinfer::{ModelText, Outline, WeightsInfo};

use crate::http::{FormatChoice, ServerConfig};

/// What a model is and can.
#[derive(Debug, Clone)]
pub struct About {
    /// The architecture's name in `config.json`.
    pub model_type: String,
    /// Longest sequence in tokens that the model is meant for.
    pub context: usize,
    pub hidden_size: usize,
    pub vocab_size: usize,
    pub weights: WeightsInfo,
    /// The text of its chat template.
    pub chat_template: Option<String>,
    /// One that cannot be used is one: chats say what is wrong with it.
    pub has_chat_template: bool,
    pub conversations: Conversations,
    /// Whether it fills in the middle of a text.
    pub fills_in: bool,
}

impl About {
    /// May render the chat template in a worker process.
    pub fn of(outline: &Outline, config: &ServerConfig) -> Self {
        let Outline { text, .. } = outline;
        let template = text.chat_template();
        Self {
            model_type: outline.model_type.clone(),
            context: outline.context,
            hidden_size: outline.hidden_size,
            vocab_size: outline.vocab_size,
            weights: outline.weights.clone(),
            chat_template: template.map(|template| template.source().to_owned()),
            has_chat_template: template.is_some() || text.has_faulty_chat_template(),
            conversations: Conversations::of(text, config),
            fills_in: text.tokenizer().and_then(InfillTokens::of).is_some(),
        }
    }
}

impl About {
    /// What it can do, in Ollama's words.
    pub fn capabilities(&self) -> Vec<&'static str> {
        let all = [
            ("completion", true),
            ("embedding", true),
            ("tools", self.conversations.takes_tools),
            ("thinking", self.conversations.reasoning_format.is_some()),
            ("insert", self.fills_in),
        ];
        all.into_iter().filter_map(|(name, has)| has.then_some(name)).collect()
    }
}

/// How conversations with a model are read.
#[derive(Debug, Clone)]
pub struct Conversations {
    /// How the model marks its reasoning, if it does.
    pub reasoning_format: Option<ReasoningFormat>,
    /// The marks of the reasoning, which are shown where it is not told apart.
    pub reasoning_marks: Vec<&'static str>,
    /// How it writes tool calls.
    pub tool_calls: ToolCallFormat,
    /// Whether the chat template has a place for tools.
    pub takes_tools: bool,
}

impl Conversations {
    pub fn of(text: &ModelText, config: &ServerConfig) -> Self {
        let template = text.chat_template();
        let takes_tools = template.is_some_and(|template| template.has_place_for_tools().unwrap_or(false));
        let for_tools = template.and_then(|template| template.for_tools().ok());
        let own_reasoning = [template, for_tools].into_iter().flatten().find_map(ReasoningFormat::of);
        let own_tool_calls = || for_tools.map(ToolCallFormat::of).unwrap_or_default();
        Self {
            reasoning_marks: match config.reasoning_format {
                FormatChoice::Named(format) => Some(format),
                FormatChoice::Own | FormatChoice::None => own_reasoning,
            }
            .map(|format| format.marks())
            .unwrap_or_default(),
            reasoning_format: match config.reasoning_format {
                FormatChoice::Own => own_reasoning,
                FormatChoice::None => None,
                FormatChoice::Named(format) => Some(format),
            },
            tool_calls: config.tool_call_format.unwrap_or_else(own_tool_calls),
            takes_tools,
        }
    }
}
