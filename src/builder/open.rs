//! The order in which a session is opened, and on which device.

use std::sync::Arc;

use super::parts::Found;
use super::plan::{Room, device_memory, host_memory};
use super::{Builder, Device};
use crate::backend::Backend;
use crate::backend::cpu::{Cpu, Isa, Reference};
use crate::backend::cuda::Cuda;
use crate::backend::cuda::native::Native;
use crate::error::{Error, Result};
use crate::privacy::trace::{self, Sizes};
use crate::session::Session;
use crate::weights::files::Recording;
#[cfg(feature = "hub")]
use crate::weights::store;
use crate::weights::store::Held;

impl Builder {
    /// Reads the checkpoint, checks all of it, and starts the session. [`Session::builder`] has an example.
    ///
    /// # Errors
    /// The scrubbing allocator is neither installed nor done without ([`Error::UnscrubbedHeap`]); a setting out of
    /// bounds; a file that is missing or malformed; weights that do not fit the config or are not
    /// finite; memory over budget or not to be had.
    pub fn open(self) -> Result<Session> {
        trace::open(
            self.clock.clone(),
            || self.load(),
            |session| {
                let memory = session.memory();
                let sizes = Sizes {
                    context_tokens: session.context_length() as u64,
                    kv_tokens: memory.kv_tokens as u64,
                    memory_bytes: memory.total_bytes(),
                };
                (&*session.client.telemetry, sizes)
            },
        )
    }

    fn load(mut self) -> Result<Session> {
        if !self.accept_unscrubbed_heap && !crate::alloc::is_installed() {
            return Err(Error::UnscrubbedHeap);
        }
        let _held = Held::new(std::mem::take(&mut self.held));
        #[cfg(feature = "hub")]
        self.fetch()?;
        let threads = self.thread_count()?;
        if self.ties.attester.is_some() && self.ties.signer.is_none() {
            return Err(Error::request(
                "attest",
                "left out without sign_receipts: a quote is over the key that signs",
            ));
        }
        self.recording = self.hash_files.then(Recording::start).transpose()?;
        let found = match self.encoder_parts()? {
            Ok(parts) => Found::Encoder(Box::new(parts)),
            Err(source) => {
                let parts = self.parts_from(source)?;
                let draft = self.draft_parts(&parts)?;
                Found::Decoder(Box::new((parts, draft)))
            }
        };
        match self.device {
            Device::Reference => self.start_on(found, &host_memory(), || Ok(Reference::default())),
            Device::Cuda(device) => {
                let driver = Arc::new(Native::open(device)?);
                self.start_on(found, &device_memory(&*driver), || Ok(Cuda::new(driver.clone())))
            }
            #[cfg(feature = "testing")]
            Device::CudaEmulated => {
                let calls = self.faults.device_fails_in.unwrap_or(i64::MAX);
                let driver = crate::backend::cuda::emulated::Emulated::failing_after(calls);
                let driver = Arc::new(driver.counting(self.faults.read_bytes));
                self.start_on(found, &device_memory(&*driver), || Ok(Cuda::new(driver.clone())))
            }
            Device::Auto => {
                let fitting = Native::open(0).and_then(|driver| {
                    let memory = self.memory_plan::<Cuda<Native>>(&found);
                    self.check_memory(&memory, &device_memory(&driver)).map(|()| Arc::new(driver))
                });
                let why = match fitting {
                    Ok(driver) => {
                        let room = device_memory(&*driver);
                        return self.start_on(found, &room, || Ok(Cuda::new(driver.clone())));
                    }
                    Err(why) => why,
                };
                let isa = self.instruction_set()?;
                let mut session = self.start_on(found, &host_memory(), || Cpu::new(threads, isa))?;
                session.fell_back = Some(why);
                Ok(session)
            }
            Device::Cpu | Device::CpuWith(_) => {
                let isa = self.instruction_set()?;
                self.start_on(found, &host_memory(), || Cpu::new(threads, isa))
            }
        }
    }

    /// Loads what was found, and starts its threads.
    fn start_on<B: Backend + 'static>(
        self,
        found: Found,
        room: &Room,
        backend: impl Fn() -> Result<B>,
    ) -> Result<Session>
    where
        B::Weight: 'static,
    {
        let memory = self.memory_plan::<B>(&found);
        self.check_memory(&memory, room)?;
        match found {
            Found::Encoder(parts) => self.start_encoder(*parts, memory, backend()?),
            Found::Decoder(parts) => self.start(*parts, memory, backend),
        }
    }

    /// Puts the folders of downloaded checkpoints in place of their ids.
    #[cfg(feature = "hub")]
    fn fetch(&mut self) -> Result<()> {
        for folder in [Some(&mut self.folder), self.draft.as_mut()].into_iter().flatten() {
            if !store::exists(folder)
                && !store::is_folder(folder)
                && let Some(id) = crate::hub::Id::parse(folder)
            {
                *folder = self.hub.fetch(&id)?;
            }
        }
        Ok(())
    }

    pub(crate) fn instruction_set(&self) -> Result<Isa> {
        let Device::CpuWith(name) = self.device else {
            return Ok(Isa::best());
        };
        Isa::named(name).ok_or_else(|| {
            let names: Vec<_> = Isa::available().iter().map(|isa| isa.name).collect();
            Error::request("device", format!("an instruction set of this machine: {}", names.join(", ")))
        })
    }
}
