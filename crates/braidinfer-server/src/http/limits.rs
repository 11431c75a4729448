//! Which values the limits of a server may have.

use std::time::Duration;

use super::{ServerConfig, StartError};

/// Longest timeout; far less than what clocks can count.
const MOST_SECONDS: u64 = 31_536_000;
/// Most bytes for anything that is counted in bytes.
const MOST_BYTES: usize = 1 << 48;

impl ServerConfig {
    /// Fails if a limit is zero, too large to mean anything, or contradicts another one.
    pub fn validate(&self) -> Result<(), StartError> {
        let numbers = [
            ("max_connections", self.max_connections, 1_000_000),
            ("max_connections_per_client", self.max_connections_per_client, 1_000_000),
            ("max_body_bytes", self.max_body_bytes, MOST_BYTES),
            ("max_answer_bytes", self.max_answer_bytes, MOST_BYTES),
            ("max_request_memory", self.max_request_memory, MOST_BYTES),
        ];
        for (setting, value, most) in numbers {
            if !(1..=most).contains(&value) {
                return Err(refused(setting, format!("a number from 1 to {most}"), value.to_string()));
            }
        }
        let times = [
            ("read_timeout", self.read_timeout, false),
            ("write_timeout", self.write_timeout, false),
            ("request_timeout", self.request_timeout, false),
            ("shutdown_timeout", self.shutdown_timeout, true),
        ];
        for (setting, time, may_be_zero) in times {
            let is_long = time > Duration::from_secs(MOST_SECONDS);
            if is_long || (time.is_zero() && !may_be_zero) {
                let least = if may_be_zero { "at least" } else { "more than" };
                let expected = format!("{least} 0 and at most {MOST_SECONDS} seconds");
                return Err(refused(setting, expected, format!("{time:?}")));
            }
        }
        // One client may hold half of the memory, and a request is of one client.
        for (setting, value) in [("max_body_bytes", self.max_body_bytes), ("max_answer_bytes", self.max_answer_bytes)] {
            let half = self.max_request_memory / 2;
            if value > half {
                let expected = format!("at most half of max_request_memory, which is {half} bytes");
                return Err(refused(setting, expected, value.to_string()));
            }
        }
        Ok(())
    }
}

fn refused(setting: &'static str, expected: String, found: String) -> StartError {
    StartError::Setting { setting, expected: expected.into(), found }
}
