//! What the compiler emits: a loop with a poll in it.

use std::error::Error;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

use cranelift::codegen::ir::{BlockArg, FuncRef};
use cranelift::jit::{JITBuilder, JITModule};
use cranelift::module::{Linkage, Module, default_libcall_names};
use cranelift::native;
use cranelift::prelude::{
    AbiParam, Configurable, FunctionBuilder, FunctionBuilderContext, InstBuilder, IntCC,
    MemFlagsData, Value, settings, types,
};
use safepoint::RawMutator;

/// The sum of the numbers below `count`. Adds to `steps` as it goes, and polls in each step.
pub(crate) type Sum = unsafe extern "C" fn(
    count: u64,
    steps: *const AtomicU64,
    poll_word: *const AtomicU32,
    mutator: *const RawMutator,
) -> u64;

/// A loop that was compiled.
pub(crate) struct Compiled {
    pub(crate) sum: Sum,
    /// Its instructions.
    pub(crate) text: String,
}

/// How often a poll has found something to do.
pub(crate) static SLOW_PATHS: AtomicUsize = AtomicUsize::new(0);

/// What the emitted code calls where its poll finds something.
///
/// # Safety
///
/// A mutator of the calling thread, which is attached. The emitted code keeps no references to what a stop protects.
unsafe extern "C" fn poll_slow(mutator: *const RawMutator) {
    SLOW_PATHS.fetch_add(1, Relaxed);
    // SAFETY: the caller's obligation.
    let mutator = unsafe { *mutator };
    // SAFETY: the caller's obligation.
    unsafe { mutator.poll() };
}

/// Compiles the loop for this machine. Its code stays for as long as the process lives.
pub(crate) fn compile() -> Result<Compiled, Box<dyn Error>> {
    let mut flags = settings::builder();
    flags.set("opt_level", "speed")?;
    flags.set("is_pic", "false")?;
    let isa = native::builder()?.finish(settings::Flags::new(flags))?;
    let mut builder = JITBuilder::with_isa(isa, default_libcall_names());
    builder.symbol("poll_slow", poll_slow as *const u8);
    let mut module = JITModule::new(builder);
    let pointer = module.target_config().pointer_type();

    let mut signature = module.make_signature();
    signature.params.push(AbiParam::new(pointer));
    let slow = module.declare_function("poll_slow", Linkage::Import, &signature)?;

    let mut context = module.make_context();
    context.func.signature.params =
        [types::I64, pointer, pointer, pointer].map(AbiParam::new).into();
    context.func.signature.returns = vec![AbiParam::new(types::I64)];
    let sum = module.declare_function("sum", Linkage::Local, &context.func.signature)?;
    let slow = module.declare_func_in_func(slow, &mut context.func);
    let mut shared = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut context.func, &mut shared);
    emit(&mut builder, slow);
    builder.finalize(module.target_config());
    context.set_disasm(true);
    module.define_function(sum, &mut context)?;
    module.finalize_definitions()?;

    let text = context.compiled_code().and_then(|code| code.vcode.clone()).unwrap_or_default();
    let sum = module.get_finalized_function(sum);
    // SAFETY: it was declared with the arguments and the result of this type, by the convention of C. The module is
    // dropped without freeing its code.
    let sum = unsafe { std::mem::transmute::<*const u8, Sum>(sum) };
    Ok(Compiled { sum, text })
}

/// The body of [`Sum`].
fn emit(at: &mut FunctionBuilder<'_>, slow: FuncRef) {
    let [entry, head, asked, step, end] = [(); 5].map(|()| at.create_block());
    at.append_block_params_for_function_params(entry);
    let &[count, steps, poll_word, mutator] = at.block_params(entry) else { unreachable!() };
    let number = at.append_block_param(head, types::I64);
    let sum = at.append_block_param(head, types::I64);
    let value = |value: Value| BlockArg::Value(value);

    at.switch_to_block(entry);
    let zero = at.ins().iconst(types::I64, 0);
    at.ins().jump(head, &[value(zero), value(zero)]);

    // The poll: one load and one branch. The load is atomic so that it stays in the loop.
    at.switch_to_block(head);
    let word = at.ins().atomic_load(types::I32, MemFlagsData::trusted(), poll_word);
    let bits = at.ins().band_imm_u(word, i64::from(RawMutator::POLL_MASK));
    at.ins().brif(bits, asked, &[], step, &[]);

    // Out of the way of the loop.
    at.set_cold_block(asked);
    at.switch_to_block(asked);
    at.ins().call(slow, &[mutator]);
    at.ins().jump(step, &[]);

    at.switch_to_block(step);
    let next = at.ins().iadd_imm_u(number, 1);
    let new = at.ins().iadd(sum, number);
    at.ins().store(MemFlagsData::trusted(), next, steps, 0);
    let goes_on = at.ins().icmp(IntCC::UnsignedLessThan, next, count);
    at.ins().brif(goes_on, head, &[value(next), value(new)], end, &[]);

    at.switch_to_block(end);
    at.ins().return_(&[new]);
    at.seal_all_blocks();
}
