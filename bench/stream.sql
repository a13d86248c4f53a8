SELECT nats_publish_text_stream('stream', 'hello');
