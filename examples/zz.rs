use amnesic::*; use std::time::Instant;
fn main() { 
let s = Session::builder("models/default").kv_tokens(32768).context_length(1024).max_sequences(32).step_tokens(256).open().unwrap();
for ctx in [100usize, 400] {
// pure decode of 31 at ctx
let dec = |n: usize, l: usize| (0..n).map(move |i| Request::tokens((0..ctx as u32).map(|x| x + i as u32).collect::<Vec<_>>()).max_tokens(l).ignore_eos(true)).collect::<Vec<_>>();
let mut streams: Vec<_> = dec(31, 500).into_iter().map(|r| s.stream(r.stream_buffer(4096)).unwrap()).collect();
while s.load().running < 31 || s.load().waiting > 0 {} std::thread::sleep(std::time::Duration::from_millis(200));
let c = s.counters(); let t = Instant::now(); std::thread::sleep(std::time::Duration::from_millis(300)); let c1 = s.counters(); let d = t.elapsed().as_secs_f64() / (c1.steps - c.steps) as f64;
println!("ctx {ctx}: decode 31: {:.0} us", d*1e6);
for p in [25usize, 50, 100, 200] {
 let t = Instant::now(); let c = s.counters(); for i in 0..20 { s.generate(Request::tokens((0..p as u32).map(|x| (x*7 + i) % 4000).collect::<Vec<_>>()).max_tokens(1)).unwrap(); } let c1 = s.counters();
 println!("   mixed + prefill {p}: {:.0} us/step, steps {}", t.elapsed().as_secs_f64()*1e6/(c1.steps-c.steps) as f64, c1.steps-c.steps);
}
streams.clear();
for p in [25usize, 50, 100, 200] { let t = Instant::now(); let c = s.counters(); for i in 0..20 { s.generate(Request::tokens((0..p as u32).map(|x| (x*7 + i) % 4000).collect::<Vec<_>>()).max_tokens(1)).unwrap(); } let c1 = s.counters();
 println!("   alone prefill {p}: {:.0} us/step", t.elapsed().as_secs_f64()*1e6/(c1.steps-c.steps) as f64); }
}
}
