//! How model families mark their calls.

use crate::text::ChatTemplate;

/// How a model family writes tool calls. Whatever the family, an answer or a line that is a call in JSON, of a tool that was
/// offered, is a call, too: small models leave out their marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToolCallFormat {
    /// The name of the format in settings.
    pub name: &'static str,
    /// What in a chat template tells that its model writes calls in this way.
    hints: &'static [&'static str],
    /// Marks before one or several calls.
    pub(super) openings: &'static [&'static str],
    /// Marks between and after calls, which are left out.
    pub(super) closings: &'static [&'static str],
}

/// The known formats. The first with a hint in a chat template is the model's; the last is that of all others.
const FORMATS: &[ToolCallFormat] = &[
    ToolCallFormat {
        name: "deepseek",
        hints: &["<｜tool▁call▁begin｜>"],
        openings: &["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"],
        closings: &["<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"],
    },
    ToolCallFormat {
        name: "kimi",
        hints: &["<|tool_call_begin|>"],
        openings: &["<|tool_calls_section_begin|>", "<|tool_call_begin|>"],
        closings: &["<|tool_call_end|>", "<|tool_calls_section_end|>"],
    },
    ToolCallFormat { name: "mistral", hints: &["[TOOL_CALLS]"], openings: &["[TOOL_CALLS]"], closings: &[] },
    // gpt-oss. Calls are messages in a channel.
    ToolCallFormat {
        name: "channel",
        hints: &["<|channel|>commentary"],
        openings: &[
            "<|start|>assistant to=",
            "<|start|>assistant<|channel|>commentary to=",
            "<|channel|>commentary to=",
        ],
        closings: &["<|call|>"],
    },
    ToolCallFormat {
        name: "command",
        hints: &["<|START_ACTION|>"],
        openings: &["<|START_ACTION|>"],
        closings: &["<|END_ACTION|>"],
    },
    // Phi-4-mini and Granite 3 and 4.
    ToolCallFormat {
        name: "phi",
        hints: &["<|tool_call|>", "<|/tool_call|>", "functools"],
        openings: &["<|tool_call|>", "functools[", "<tool_call>"],
        closings: &["<|/tool_call|>", "</tool_call>"],
    },
    // FunctionGemma, and Gemma 4.
    ToolCallFormat {
        name: "gemma",
        hints: &["<start_function_call>", "<|tool_call>"],
        openings: &["<start_function_call>", "<|tool_call>"],
        closings: &["<end_function_call>", "<tool_call|>"],
    },
    // Hermes, Qwen, ERNIE, GLM: JSON, or parameters as elements.
    ToolCallFormat {
        name: "tagged",
        hints: &["<tool_call>", "<|tool_list|>"],
        openings: &["<tool_call>", "<function="],
        closings: &["</tool_call>", "</function>"],
    },
    ToolCallFormat {
        name: "function",
        hints: &["<function="],
        openings: &["<function="],
        closings: &["</function>", "<|eom_id|>", "<|eot_id|>"],
    },
    // Llama 3, and models whose templates say nothing.
    ToolCallFormat {
        name: "json",
        hints: &["<|python_tag|>"],
        openings: &["<|python_tag|>"],
        closings: &["<|eom_id|>"],
    },
];

impl Default for ToolCallFormat {
    /// The format of models whose templates say nothing.
    fn default() -> Self {
        FORMATS[FORMATS.len() - 1]
    }
}

impl ToolCallFormat {
    /// The names of all formats.
    pub fn names() -> impl Iterator<Item = &'static str> {
        FORMATS.iter().map(|format| format.name)
    }

    /// The format with this name.
    pub fn named(name: &str) -> Option<Self> {
        FORMATS.iter().find(|format| format.name == name).copied()
    }

    /// The format of the models that a chat template is written for, found by how it writes the calls of earlier turns.
    pub fn of(template: &ChatTemplate) -> Self {
        let is_hinted = |format: &&ToolCallFormat| format.hints.iter().any(|hint| template.mentions(hint));
        FORMATS.iter().find(is_hinted).copied().unwrap_or_default()
    }

    /// The marks, which may be special tokens.
    pub fn marks(&self) -> impl Iterator<Item = &'static str> {
        const WITHIN: [&str; 12] = [
            "[ARGS]",
            "[CALL_ID]",
            "<｜tool▁sep｜>",
            "<|tool_call_argument_begin|>",
            "<|message|>",
            "<|constrain|>",
            "<arg_key>",
            "</arg_key>",
            "<arg_value>",
            "</arg_value>",
            "<escape>",
            "<|\"|>",
        ];
        self.openings.iter().chain(self.closings).chain(&WITHIN).copied()
    }
}
