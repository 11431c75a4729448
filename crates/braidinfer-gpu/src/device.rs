//! A device: its memory, the commands that it is given, and what it answers.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use crate::adapter::{AdapterDescription, AdapterKind, Adapters, IMMEDIATE_BYTES};
use crate::{GpuError, Result};

/// How long a GPU may take for the commands of a step. A kernel that runs longer than a few seconds is ended by most drivers.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same for a program, which may compute as slowly as it likes.
const PATIENCE_WITH_SOFTWARE: Duration = Duration::from_secs(1800);

/// Bytes of a buffer that is copied to measure how fast that is: it and its copy do not fit into caches.
const COPIED_BYTES: usize = 256 << 20;

/// The fewest, where there is no memory for more.
const LEAST_COPIED_BYTES: usize = 64 << 20;

/// How long copies take that are measured together, at least: giving them to the device takes little beside that.
const COPY_TIME: Duration = Duration::from_millis(20);

/// How often they are measured.
const COPY_TRIES: usize = 3;

/// Most buffers of a kernel.
const MOST_BUFFERS: usize = 8;

/// Written by the last command of whatever is read back, so that an answer that is not one is found.
const SEAL: &str = "
var<immediate> serial: u32;
@group(0) @binding(0) var<storage, read_write> seal: array<u32>;
@compute @workgroup_size(1)
fn main() {
    seal[0] = serial;
}
";

/// An open device. Commands are recorded, and given to the device together.
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    adapter: AdapterDescription,
    limits: wgpu::Limits,
    fault: Fault,
    patience: Duration,
    recording: Recording,
    bind_groups: HashMap<(u64, [u64; MOST_BUFFERS]), wgpu::BindGroup>,
    kernels: HashMap<String, Kernel>,
    readback: Option<Buffer>,
    seal: Option<(Kernel, Buffer)>,
    edits: Vec<SourceEdit>,
    /// Most bytes of buffers, if they are limited.
    memory_limit: Option<u64>,
    serial: u32,
    ids: u64,
    allocated: Arc<AtomicU64>,
    usage: Usage,
}

/// What a device was used for since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Kernels that ran.
    pub dispatches: u64,
    /// Times that commands were given to the device.
    pub submissions: u64,
    /// Bytes that were read back, without the four that say that they are an answer.
    pub bytes_read: u64,
    /// Bytes that were uploaded.
    pub bytes_written: u64,
    /// Bytes of weights, keys and values that the kernels were to read, as their shapes say: once for each workgroup that reads them.
    pub model_bytes: u64,
}

/// Memory of a device.
#[derive(Debug)]
pub struct Buffer {
    id: u64,
    bytes: u64,
    buffer: wgpu::Buffer,
    allocated: Arc<AtomicU64>,
}

/// A kernel that is ready to run.
#[derive(Debug, Clone)]
pub struct Kernel {
    id: u64,
    name: &'static str,
    layout: wgpu::BindGroupLayout,
    pipeline: wgpu::ComputePipeline,
}

/// A change of a kernel's program, to see whether faults are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceEdit {
    /// The name of the kernel.
    pub kernel: &'static str,
    /// What is replaced, wherever it is.
    pub from: &'static str,
    /// What takes its place.
    pub to: &'static str,
}

/// The first thing that went wrong. Later ones follow from it.
#[derive(Debug, Clone, Default)]
struct Fault(Arc<Mutex<Option<GpuError>>>);

/// Commands that the device was not given yet.
#[derive(Default)]
struct Recording {
    encoder: Option<wgpu::CommandEncoder>,
    pass: Option<wgpu::ComputePass<'static>>,
}

impl Fault {
    fn set(&self, error: GpuError) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    fn check(&self) -> Result<()> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}

impl Buffer {
    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.allocated.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Where a device is stuck or in disorder, waiting for it as `wgpu` does when its queue is dropped might never end, or panic.
impl Drop for Gpu {
    fn drop(&mut self) {
        let is_sound = matches!(self.fault.check(), Ok(()) | Err(GpuError::Lost { .. }));
        if !is_sound {
            std::mem::forget((self.device.clone(), self.queue.clone()));
        }
    }
}

impl Gpu {
    /// Opens an adapter.
    ///
    /// Fails if it lacks what the kernels need, and if its driver gives no device.
    pub fn open(adapters: &Adapters, index: usize) -> Result<Self> {
        let (adapter, description) = adapters.get(index)?;
        if !description.lacks.is_empty() {
            let (adapter, what) = (description.to_string(), description.lacks.join(", "));
            return Err(GpuError::Lacking { adapter, what });
        }
        let limits = adapter.limits();
        let (device, queue) = request(adapter, description, &limits)?;
        let fault = Fault::default();
        let (lost, refused) = (fault.clone(), fault.clone());
        let name = description.to_string();
        device.set_device_lost_callback(move |reason, message| {
            lost.set(GpuError::Lost { adapter: name.clone(), message: format!("{reason:?}: {message}") });
        });
        let name = description.to_string();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            refused.set(GpuError::Refused {
                adapter: name.clone(),
                what: "a command".to_owned(),
                message: error.to_string(),
            });
        }));
        let software = description.kind == AdapterKind::Software;
        Ok(Self {
            device,
            queue,
            adapter: description.clone(),
            limits,
            fault,
            patience: if software { PATIENCE_WITH_SOFTWARE } else { PATIENCE },
            recording: Recording::default(),
            bind_groups: HashMap::new(),
            kernels: HashMap::new(),
            readback: None,
            seal: None,
            edits: Vec::new(),
            memory_limit: None,
            serial: 0,
            ids: 0,
            allocated: Arc::default(),
            usage: Usage::default(),
        })
    }

    /// The adapter.
    pub fn adapter(&self) -> &AdapterDescription {
        &self.adapter
    }

    /// Bytes of all buffers that there are.
    pub fn allocated_bytes(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    /// Refuses memory from now on if there would be more than `bytes` of it.
    pub fn limit_memory(&mut self, bytes: Option<u64>) {
        self.memory_limit = bytes;
    }

    /// What it was used for.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// The largest buffer that a kernel can read as a whole.
    pub fn max_binding_bytes(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size)
    }

    /// Most workgroups in each direction.
    pub fn max_groups(&self) -> u32 {
        self.limits.max_compute_workgroups_per_dimension
    }

    /// Fails with what went wrong with the device, if anything did.
    pub fn check(&self) -> Result<()> {
        self.fault.check()
    }

    /// Gives the device up, as its driver would: for tests of what follows from that.
    pub fn destroy(&self) {
        self.device.destroy();
        // That it is gone is said only to who waits; a driver that gives a device up says so at once.
        let _ = self.wait(None);
    }

    /// Memory of at least `bytes`, all zeros.
    ///
    /// Fails with [`GpuError::OutOfMemory`]; everything else goes on then.
    pub fn buffer(&mut self, what: &str, bytes: usize) -> Result<Buffer> {
        let usages = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        self.create_buffer(what, bytes, usages)
    }

    fn create_buffer(&mut self, what: &str, bytes: usize, usage: wgpu::BufferUsages) -> Result<Buffer> {
        self.fault.check()?;
        let bytes = (bytes.max(4) as u64).checked_next_multiple_of(4).unwrap_or(u64::MAX);
        let failed = |available: Option<u64>| {
            let (adapter, what) = (self.adapter.to_string(), what.to_owned());
            GpuError::OutOfMemory { adapter, what, bytes, available }
        };
        let bindable = !usage.contains(wgpu::BufferUsages::STORAGE) || bytes <= self.max_binding_bytes();
        if bytes > self.limits.max_buffer_size || !bindable {
            return Err(failed(Some(self.max_binding_bytes())));
        }
        let taken = self.allocated_bytes();
        if let Some(limit) = self.memory_limit.filter(|limit| taken.saturating_add(bytes) > *limit) {
            return Err(failed(Some(limit.saturating_sub(taken))));
        }
        let descriptor = wgpu::BufferDescriptor { label: None, size: bytes, usage, mapped_at_creation: false };
        let (buffer, error) = self.scoped(|device| device.create_buffer(&descriptor));
        match error {
            None => {}
            Some(wgpu::Error::OutOfMemory { .. }) => return Err(failed(None)),
            Some(error) => return Err(self.refused(format!("memory for {what}"), &error)),
        }
        self.fault.check()?;
        self.allocated.fetch_add(bytes, Ordering::Relaxed);
        Ok(Buffer { id: self.next_id(), bytes, buffer, allocated: Arc::clone(&self.allocated) })
    }

    /// Does something with the device, and returns the first thing that its driver said against it.
    fn scoped<T>(&self, action: impl FnOnce(&wgpu::Device) -> T) -> (T, Option<wgpu::Error>) {
        let scopes = [wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory]
            .map(|filter| self.device.push_error_scope(filter));
        let done = action(&self.device);
        let errors = scopes.into_iter().rev().map(|scope| pollster::block_on(scope.pop()));
        // Each scope has to be left, whatever the others say.
        (done, errors.fold(None, Option::or))
    }

    fn refused(&self, what: String, error: &wgpu::Error) -> GpuError {
        GpuError::Refused { adapter: self.adapter.to_string(), what, message: error.to_string() }
    }

    fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    /// Forgets how kernels were given buffers, so that those that are no longer used elsewhere are freed.
    pub fn forget_buffers(&mut self) {
        self.bind_groups.clear();
    }

    /// Writes words to a buffer, before the commands that were not submitted yet.
    pub fn write(&mut self, buffer: &Buffer, first_word: usize, words: &[u32]) {
        if !words.is_empty() {
            self.usage.bytes_written += size_of_val(words) as u64;
            self.queue.write_buffer(&buffer.buffer, first_word as u64 * 4, bytemuck::cast_slice(words));
        }
    }

    /// Writes values to a buffer, as [`Gpu::write`] does.
    pub fn write_f32(&mut self, buffer: &Buffer, first: usize, values: &[f32]) {
        self.write(buffer, first, bytemuck::cast_slice(values));
    }

    /// Makes sure that what was written has reached the device, which frees the memory that it was kept in until then.
    pub fn flush_writes(&mut self) -> Result<()> {
        self.submit()?;
        self.wait(None)
    }

    /// Changes the programs of kernels that are compiled from now on.
    pub fn edit_sources(&mut self, edits: Vec<SourceEdit>) {
        self.edits = edits;
    }

    /// Compiles a kernel, unless that was done before. Of its buffers, those whose bit is set in `written` are written to.
    ///
    /// Fails with [`GpuError::Refused`] if the driver does not take it.
    pub fn kernel(&mut self, name: &'static str, source: String, buffers: usize, written: u32) -> Result<Kernel> {
        let edits = self.edits.iter().filter(|edit| edit.kernel == name);
        let source = edits.fold(source, |source, edit| source.replace(edit.from, edit.to));
        self.fault.check()?;
        if let Some(kernel) = self.kernels.get(&source) {
            return Ok(kernel.clone());
        }
        let ((layout, pipeline), error) = self.scoped(|_| self.compile(&source, buffers, written));
        if let Some(error) = error {
            return Err(self.refused(format!("kernel {name}"), &error));
        }
        self.fault.check()?;
        let kernel = Kernel { id: self.next_id(), name, layout, pipeline };
        self.kernels.insert(source, kernel.clone());
        Ok(kernel)
    }

    fn compile(&self, source: &str, buffers: usize, written: u32) -> (wgpu::BindGroupLayout, wgpu::ComputePipeline) {
        let entry = |binding: u32| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: written >> binding & 1 == 0 },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let entries: Vec<_> = (0..buffers as u32).map(entry).collect();
        let layout =
            self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(&layout)],
            immediate_size: IMMEDIATE_BYTES,
        });
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(source.into()),
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                // Kernels read nothing of a workgroup's memory that they have not written.
                zero_initialize_workgroup_memory: false,
                ..wgpu::PipelineCompilationOptions::default()
            },
            cache: None,
        });
        (layout, pipeline)
    }

    /// Records a kernel. It sees what those that were recorded before it wrote.
    pub fn dispatch(&mut self, kernel: &Kernel, buffers: &[&Buffer], parameters: &[u32], groups: [u32; 3]) {
        assert!(buffers.len() <= MOST_BUFFERS && parameters.len() * 4 <= IMMEDIATE_BYTES as usize, "{}", kernel.name);
        if groups.contains(&0) {
            return;
        }
        assert!(groups.iter().all(|count| *count <= self.max_groups()), "{}: {groups:?} workgroups", kernel.name);
        let mut key = (kernel.id, [0; MOST_BUFFERS]);
        for (id, buffer) in key.1.iter_mut().zip(buffers) {
            *id = buffer.id;
        }
        let device = &self.device;
        let bind_group = self.bind_groups.entry(key).or_insert_with(|| {
            let entries = buffers.iter().enumerate().map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding: binding as u32,
                resource: buffer.buffer.as_entire_binding(),
            });
            let entries: Vec<_> = entries.collect();
            device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: None,
                layout: &kernel.layout,
                entries: &entries,
            })
        });
        let encoder = self.recording.encoder.get_or_insert_with(|| device.create_command_encoder(&Default::default()));
        let pass = self
            .recording
            .pass
            .get_or_insert_with(|| encoder.begin_compute_pass(&Default::default()).forget_lifetime());
        pass.set_pipeline(&kernel.pipeline);
        pass.set_bind_group(0, &*bind_group, &[]);
        pass.set_immediates(0, bytemuck::cast_slice(parameters));
        pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
        self.usage.dispatches += 1;
    }

    /// Records a copy of words from one buffer to another.
    pub fn copy(&mut self, from: (&Buffer, usize), to: (&Buffer, usize), words: usize) {
        if words == 0 {
            return;
        }
        self.recording.pass = None;
        let device = &self.device;
        let encoder = self.recording.encoder.get_or_insert_with(|| device.create_command_encoder(&Default::default()));
        let word = |index: usize| index as u64 * 4;
        encoder.copy_buffer_to_buffer(&from.0.buffer, word(from.1), &to.0.buffer, word(to.1), word(words));
    }

    /// Counts bytes of weights, keys or values that a recorded kernel reads.
    pub(crate) fn count_model_bytes(&mut self, bytes: u64) {
        self.usage.model_bytes += bytes;
    }

    /// Bytes that the device reads and writes in a second, together, while it copies buffers: the best of some tries.
    ///
    /// Fails if there is no memory for buffers that are larger than caches.
    pub fn copy_rate(&mut self) -> Result<f64> {
        let buffers = self.copied_buffers()?;
        // The first one also clears the buffers.
        self.copy_time(&buffers, 1)?;
        let mut copies = 2;
        while self.copy_time(&buffers, copies)? < COPY_TIME && copies < 1 << 10 {
            copies *= 2;
        }
        let mut best = Duration::MAX;
        for _ in 0..COPY_TRIES {
            best = best.min(self.copy_time(&buffers, copies)?);
        }
        Ok((2 * copies as u64 * buffers[0].bytes()) as f64 / best.as_secs_f64().max(1e-9))
    }

    fn copied_buffers(&mut self) -> Result<[Buffer; 2]> {
        let mut bytes = COPIED_BYTES.min(self.limits.max_buffer_size as usize);
        loop {
            let both = self.buffer("copies", bytes).and_then(|first| Ok([first, self.buffer("copies", bytes)?]));
            match both {
                Err(GpuError::OutOfMemory { .. }) if bytes / 2 >= LEAST_COPIED_BYTES => bytes /= 2,
                both => return both,
            }
        }
    }

    /// How long it takes to copy one to the other and back again, and so on.
    fn copy_time(&mut self, buffers: &[Buffer; 2], copies: usize) -> Result<Duration> {
        for copy in 0..copies {
            let words = buffers[0].bytes() as usize / 4;
            self.copy((&buffers[copy % 2], 0), (&buffers[1 - copy % 2], 0), words);
        }
        let started = Instant::now();
        self.flush_writes()?;
        Ok(started.elapsed())
    }

    /// Gives the device what was recorded, without waiting for it.
    pub fn submit(&mut self) -> Result<()> {
        self.recording.pass = None;
        let commands = self.recording.encoder.take().map(wgpu::CommandEncoder::finish);
        self.usage.submissions += u64::from(commands.is_some());
        self.queue.submit(commands);
        self.fault.check()
    }

    /// Drops what was recorded.
    pub fn discard(&mut self) {
        self.recording = Recording::default();
    }

    fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let waited = self.device.poll(wgpu::PollType::Wait { submission_index, timeout: Some(self.patience) });
        self.fault.check()?;
        if let Err(error) = waited {
            let adapter = self.adapter.to_string();
            self.fault.set(match error {
                wgpu::PollError::Timeout => GpuError::NoAnswer { adapter, waited: self.patience },
                error => GpuError::Lost { adapter, message: error.to_string() },
            });
        }
        self.fault.check()
    }

    /// Gives the device what was recorded, and reads words of some buffers, one after the other.
    ///
    /// Fails if the device is lost, does not answer in time, or answers with what is older than the commands.
    pub fn read(&mut self, parts: &[(&Buffer, Range<usize>)]) -> Result<Vec<u32>> {
        let words: usize = parts.iter().map(|(_, range)| range.len()).sum();
        self.reserve_results(words)?;
        self.serial = self.serial.wrapping_add(1);
        let (Some(readback), Some((seal, sealed))) = (self.readback.take(), self.seal.take()) else {
            return Err(self.lost("nothing to read results into"));
        };
        self.dispatch(&seal, &[&sealed], &[self.serial], [1, 1, 1]);
        let mut at = 0;
        for (buffer, range) in parts {
            self.copy((buffer, range.start), (&readback, at), range.len());
            at += range.len();
        }
        self.copy((&sealed, 0), (&readback, at), 1);
        self.seal = Some((seal, sealed));
        let values = self.read_mapped(&readback, words + 1);
        self.readback = Some(readback);
        let mut values = values?;
        if values.pop() != Some(self.serial) {
            self.fault.set(GpuError::Stale { adapter: self.adapter.to_string() });
        }
        self.fault.check()?;
        self.usage.bytes_read += words as u64 * 4;
        Ok(values)
    }

    /// [`Gpu::read`] of values.
    pub fn read_f32(&mut self, parts: &[(&Buffer, Range<usize>)]) -> Result<Vec<f32>> {
        Ok(bytemuck::cast_vec(self.read(parts)?))
    }

    fn lost(&self, message: &str) -> GpuError {
        GpuError::Lost { adapter: self.adapter.to_string(), message: message.to_owned() }
    }

    /// Makes memory for reading so many words at once.
    ///
    /// Fails with [`GpuError::OutOfMemory`]; everything else goes on then.
    pub fn reserve_results(&mut self, words: usize) -> Result<()> {
        let bytes = (words + 1) * 4;
        if self.readback.as_ref().is_none_or(|readback| readback.bytes < bytes as u64) {
            let usages = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
            // A few sizes only, but near the end of the memory no more than is needed.
            let rounded = words.next_power_of_two() * 4 + 4;
            let made = self.create_buffer("results", rounded, usages);
            self.readback = Some(made.or_else(|_| self.create_buffer("results", bytes, usages))?);
        }
        if self.seal.is_none() {
            let kernel = self.kernel("seal", SEAL.to_owned(), 1, 1)?;
            let sealed = self.buffer("results", 4)?;
            self.seal = Some((kernel, sealed));
        }
        Ok(())
    }

    fn read_mapped(&mut self, readback: &Buffer, words: usize) -> Result<Vec<u32>> {
        self.recording.pass = None;
        let commands = self.recording.encoder.take().map(wgpu::CommandEncoder::finish);
        self.usage.submissions += 1;
        let submission = self.queue.submit(commands);
        self.fault.check()?;
        let range = 0..words as u64 * 4;
        let (sender, mapped) = mpsc::channel();
        readback.buffer.map_async(wgpu::MapMode::Read, range.clone(), move |result| {
            // Who waited no longer waits if the device was lost.
            let _ = sender.send(result);
        });
        self.wait(Some(submission))?;
        match mapped.try_recv() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(self.lost(&error.to_string())),
            Err(_) => return Err(self.lost("it did not say whether its results can be read")),
        }
        let values = readback.buffer.get_mapped_range(range).map_err(|error| self.lost(&error.to_string()))?;
        let words = bytemuck::pod_collect_to_vec(&values);
        drop(values);
        readback.buffer.unmap();
        Ok(words)
    }
}

/// A device of an adapter with these limits. Fails if its driver gives none.
fn request(
    adapter: &wgpu::Adapter,
    description: &AdapterDescription,
    limits: &wgpu::Limits,
) -> Result<(wgpu::Device, wgpu::Queue)> {
    let descriptor = wgpu::DeviceDescriptor {
        required_features: wgpu::Features::IMMEDIATES,
        required_limits: limits.clone(),
        ..wgpu::DeviceDescriptor::default()
    };
    let denied = |error: wgpu::RequestDeviceError| GpuError::Denied {
        adapter: description.to_string(),
        message: error.to_string(),
    };
    pollster::block_on(adapter.request_device(&descriptor)).map_err(denied)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Set where tests must not be left out for want of an adapter.
    const REQUIRED: &str = "BRAIDINFER_TEST_GPU";

    #[test]
    fn a_device_that_is_denied_is_said_with_its_adapter() {
        let adapters = Adapters::find();
        let Ok(first) = adapters.first() else {
            assert!(std::env::var_os(REQUIRED).is_none(), "no adapter");
            return;
        };
        let (adapter, description) = adapters.get(first.index).expect("it was found");
        let more = wgpu::Limits { max_bind_groups: adapter.limits().max_bind_groups + 1, ..adapter.limits() };
        let error = request(adapter, description, &more).expect_err("it has fewer");
        let said = error.to_string();
        assert!(matches!(error, GpuError::Denied { .. }) && said.contains(&description.name), "{said}");
        assert!(request(adapter, description, &adapter.limits()).is_ok());
    }
}
