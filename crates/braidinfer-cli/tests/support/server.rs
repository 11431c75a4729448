//! `braidinfer serve` as a process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use super::wait_until;

/// Longest wait for anything that must happen.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait for the next bytes of an answer.
const READ_PATIENCE: Duration = Duration::from_secs(20);

/// A server, which does not outlive a test that fails.
pub struct Server(pub Child);

impl Drop for Server {
    fn drop(&mut self) {
        // After most tests it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The command, started by another program, which may be followed by arguments.
pub fn started_by(program: &[&str], command: &Command) -> Command {
    let mut by = Command::new(program[0]);
    by.args(&program[1..]).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    by.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    by
}

/// What starts a program with all signals, even if those who run the tests ignore some.
pub const WITH_SIGNALS: &[&str] = if cfg!(target_os = "linux") { &["env", "--default-signal"] } else { &["env"] };

/// A server that listens, what it writes to standard error from then on, and its address.
pub fn start_server(mut command: Command) -> (Server, BufReader<ChildStderr>, String) {
    let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut lines = BufReader::new(child.stderr.take().expect("it is piped"));
    let line = line_with(&mut lines, "listening at http://");
    let address = line.split("http://").nth(1).and_then(|rest| rest.split(',').next()).expect("an address").to_owned();
    line_with(&mut lines, "is served at");
    (Server(child), lines, address)
}

pub fn line_with(lines: &mut impl BufRead, text: &str) -> String {
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).expect("it is text") > 0, "{text} never came: {seen}");
        if line.contains(text) {
            return line;
        }
        seen += &line;
    }
}

pub fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(READ_PATIENCE)).expect("a timeout can be set");
    stream
}

pub fn send(address: &str, request: &str) -> BufReader<TcpStream> {
    let mut stream = connect(address);
    stream.write_all(request.as_bytes()).expect("it takes requests");
    BufReader::new(stream)
}

pub fn get(address: &str, path: &str) -> String {
    rest(send(address, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")))
}

pub fn post(address: &str, path: &str, kind: &str, body: &[u8]) -> String {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = connect(address);
    stream.write_all(&[head.as_bytes(), body].concat()).expect("it takes requests");
    rest(BufReader::new(stream))
}

pub fn rest(mut answer: BufReader<TcpStream>) -> String {
    let mut text = String::new();
    answer.read_to_string(&mut text).expect("it answers");
    text
}

pub fn signal(server: &Server, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &server.0.id().to_string()]).status();
    assert!(sent.expect("kill is there").success());
}

/// The exit code of a server that is about to end.
pub fn code_of(mut server: Server) -> Option<i32> {
    assert!(wait_until(|| server.0.try_wait().expect("it can be waited for").is_some()), "the server does not end");
    server.0.wait().expect("it has ended").code()
}
